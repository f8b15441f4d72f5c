"""Does a trained model score as promised on this machine? `protperf doctor --model` prints the answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD
from protperf.lm.engine import Engine
from protperf.lm.scoring.likelihood import chunked_log_likelihoods, log_likelihoods, pseudo_log_likelihoods
from protperf.lm.scoring.options import BATCH_TOKENS

PROMISED = 1e-5
"""Nats per residue by which batch mates and chunks may move a score."""

_LENGTHS = (1, 2, 15, 16, 17, 63, 64, 65, 300)
_MASKED_LENGTH, _CHUNK = 60, 37

Sequences = list[NDArray[np.uint8]]
Scores = list[NDArray[np.float64]]


def engine_checks(engine: Engine, double: Engine) -> Iterator[dict[str, Any]]:
    """Scores of made-up sequences, computed in ways that must agree: name, found and ok of each check.

    Args:
        engine: computes in float32; `double`: the same model in float64.
    """
    sequences = made_up()
    if engine.config.objective != "masked":
        packed = log_likelihoods(engine, sequences)
        alone = [log_likelihoods(engine, [x])[0] for x in sequences]
        chunks = [chunked_log_likelihoods(engine, x, _CHUNK) for x in sequences]
        exact = log_likelihoods(double, sequences)
        yield agreement("ll, batched against alone", packed, alone)
        yield agreement(f"ll, whole against chunks of {_CHUNK}", alone, chunks)
        yield agreement("ll, float32 against float64", packed, exact)
    if engine.config.objective != "causal":
        shorter = sequences[-1][:_MASKED_LENGTH]
        packed, alone = ([pseudo_log_likelihoods(engine, shorter, budget)] for budget in (BATCH_TOKENS, 1))
        exact = [pseudo_log_likelihoods(double, shorter)]
        yield agreement("pll, batched against alone", packed, alone)
        yield agreement("pll, float32 against float64", packed, exact)


def scores(engine: Engine, sequences: Sequences) -> Scores:
    """Log-likelihoods of every residue, by a method that the model was trained for."""
    if engine.config.objective == "masked":
        return [pseudo_log_likelihoods(engine, sequences[-1][:_MASKED_LENGTH])]
    return log_likelihoods(engine, sequences)


def agreement(name: str, ours: Scores, theirs: Scores) -> dict[str, Any]:
    """Whether two sets of scores are as close as promised."""
    worst = max(abs(float(a.mean() - b.mean())) for a, b in zip(ours, theirs, strict=True))
    return {"name": name, "found": f"at most {worst:.1g} nats per residue", "ok": worst <= PROMISED}


def made_up() -> Sequences:
    """Sequences of lengths around the borders of chunks."""
    rng = np.random.default_rng(0)
    return [rng.integers(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD, n).astype(np.uint8) for n in _LENGTHS]
