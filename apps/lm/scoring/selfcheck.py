"""Does a trained model score as promised on this machine? `protperf doctor --model` prints the answers."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.scoring.likelihood import chunked_log_likelihoods, log_likelihoods, pseudo_log_likelihoods
from protperf.lm.scoring.options import BATCH_TOKENS

PROMISED = 1e-5
"""Nats per residue by which batch mates and chunks may move a score."""

_LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 300)
_MASKED_LENGTH, _CHUNK = 60, 37

Sequences = list[NDArray[np.uint8]]
Scores = list[NDArray[np.float64]]


def model_checks(network: Network) -> Iterator[dict[str, Any]]:
    """Scores of made-up sequences, computed in ways that must agree: name, found and ok of each check.

    The network computes in float32. One with random features has one more line, which says how far they carry its
    scores from those of exact attention: a figure to know, never a failure.
    """
    sequences = _made_up()
    engine, double = TorchEngine(network), TorchEngine(copy.deepcopy(network).double())
    if network.config.objective != "masked":
        packed = log_likelihoods(engine, sequences)
        alone = [log_likelihoods(engine, [x])[0] for x in sequences]
        chunks = [chunked_log_likelihoods(engine, x, _CHUNK) for x in sequences]
        exact = log_likelihoods(double, sequences)
        yield _agreement("ll, batched against alone", packed, alone)
        yield _agreement(f"ll, whole against chunks of {_CHUNK}", alone, chunks)
        yield _agreement("ll, float32 against float64", packed, exact)
    if network.config.objective != "causal":
        shorter = sequences[-1][:_MASKED_LENGTH]
        packed, alone = ([pseudo_log_likelihoods(engine, shorter, budget)] for budget in (BATCH_TOKENS, 1))
        exact = [pseudo_log_likelihoods(double, shorter)]
        yield _agreement("pll, batched against alone", packed, alone)
        yield _agreement("pll, float32 against float64", packed, exact)
    if network.config.attention == "softmax":
        yield _estimate(network, sequences)


def _made_up() -> Sequences:
    rng = np.random.default_rng(0)
    return [rng.integers(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD, n).astype(np.uint8) for n in _LENGTHS]


def _agreement(name: str, ours: Scores, theirs: Scores) -> dict[str, Any]:
    worst = max(abs(float(a.mean() - b.mean())) for a, b in zip(ours, theirs, strict=True))
    return {"name": name, "found": f"at most {worst:.1g} nats per residue", "ok": worst <= PROMISED}


def _estimate(network: Network, sequences: Sequences) -> dict[str, Any]:
    exact = Network(dataclasses.replace(network.config, attention="exact"))
    exact.load_state_dict({name: x for name, x in network.state_dict().items() if not name.endswith(".omega")})
    exact.eval()
    ours, theirs = (np.concatenate(_values(net, sequences)) for net in (network, exact))
    found = float(np.sqrt(np.mean((ours - theirs) ** 2)))
    name = f"{network.config.num_features} random features against exact attention"
    return {"name": name, "found": f"{found:.1g} nats per residue apart", "ok": math.isfinite(found)}


def _values(network: Network, sequences: Sequences) -> Scores:
    if network.config.objective == "masked":
        return [pseudo_log_likelihoods(TorchEngine(network), sequences[-1][:_MASKED_LENGTH])]
    return log_likelihoods(TorchEngine(network), sequences)
