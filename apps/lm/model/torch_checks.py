"""What `protperf doctor --model` needs torch for: do the engines agree, and how far does an estimate carry?"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from protperf.lm.engine import Engine
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.model.torch_loading import torch_engine
from protperf.lm.scoring.selfcheck import agreement, engine_checks, made_up, scores
from protperf.lm.storage import checkpoint


def step_checks(step: checkpoint.Step, engine: Engine) -> Iterator[dict[str, Any]]:
    """Compare an engine with torch's on a verified step, and its estimate with exact attention."""
    composed = torch_engine(step, engine.config, engine.dtype, "cpu")
    sequences = made_up()
    name = f"{engine.name} against {composed.name}"
    yield agreement(name, scores(engine, sequences), scores(composed, sequences))
    yield from _estimate(composed.network)


def model_checks(network: Network) -> Iterator[dict[str, Any]]:
    """The checks of a model that is not on disk, which computes in float32.

    One with random features has one more line, which says how far they carry its scores from those of exact attention:
    a figure to know, never a failure.
    """
    yield from engine_checks(TorchEngine(network), TorchEngine(copy.deepcopy(network).double()))
    yield from _estimate(network)


def _estimate(network: Network) -> Iterator[dict[str, Any]]:
    if network.config.attention != "softmax":
        return
    exact = Network(dataclasses.replace(network.config, attention="exact"))
    exact.load_state_dict({name: x for name, x in network.state_dict().items() if not name.endswith(".omega")})
    exact.eval()
    sequences = made_up()
    ours, theirs = (np.concatenate(scores(TorchEngine(net), sequences)) for net in (network, exact))
    found = float(np.sqrt(np.mean((ours - theirs) ** 2)))
    name = f"{network.config.num_features} random features against exact attention"
    yield {"name": name, "found": f"{found:.1g} nats per residue apart", "ok": math.isfinite(found)}
