"""How much work a scoring is, found out before it starts."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import DataError
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD
from protperf.lm.engine import MASKED, Engine, Tokens
from protperf.lm.inference import pack
from protperf.lm.scoring.likelihood import is_scored, pseudo_log_likelihoods
from protperf.lm.scoring.options import FAST_PASSES
from protperf.lm.watch import Progress, no_progress

_SHORT, _LONG = 256, 2048
"""Tokens of the sequences that the speed is measured at."""
_BIAS_SITES, _BIAS_TOKENS = 32, 16384
"""Residues that two methods are compared at, and tokens that may be read for it."""


@dataclass
class Work:
    """Passes of the model, the tokens they read, and the sum over passes of squared lengths."""

    passes: int = 0
    tokens: int = 0
    squares: int = 0
    whole: bool = True


def count_work(paths: list[str], method: str, progress: Progress = no_progress, **reading: Any) -> Work | None:
    """Read the sequences once without scoring; None if they can be read only once, as from a pipe.

    Reading stops at the first fault of the input, which is reported when the scores reach it.

    Args:
        progress: called with the residues read.
        reading: options of `protperf.io.read_tokens`.
    """
    if not all(os.path.isfile(path) for path in paths):
        return None
    work = Work()
    try:
        for batch in io.read_tokens(paths, **reading):
            passes = num_passes(batch.lengths, method)
            sizes = batch.lengths + 2
            work.passes += int(passes.sum())
            work.tokens += int((passes * sizes).sum())
            # In float64: a proteome's sum of cubes passes 2^63.
            work.squares += int((passes * sizes.astype(np.float64) ** 2).sum())
            progress(len(batch.tokens))
    except DataError:
        work.whole = False
    return work


def tokens_read(length: int, method: str) -> int:
    """Tokens that the model reads to score a sequence of `length` residues."""
    return (length + 2) * int(num_passes(np.array([length]), method)[0])


def num_passes(lengths: NDArray[np.int64], method: str) -> NDArray[np.int64]:
    """Passes over sequences of these lengths [num_sequences]."""
    if method == "pll":
        return lengths
    if method == "pll-fast":
        return np.minimum(lengths, FAST_PASSES)
    return np.full_like(lengths, 2 if method == "ll-both" else 1)


def estimate_pll(engine: Engine, work: Work | None) -> str:
    """The passes and the time of `pll` in words; if they cannot be counted, the time of 300 residues."""
    fixed, growing = _seconds_per_token(engine)
    if work is None:
        example = Work(300, 300 * 302, 300 * 302**2)
        return f"about {_duration(fixed * example.tokens + growing * example.squares)} for a protein of 300 residues"
    seconds = _duration(fixed * work.tokens + growing * work.squares)
    if not work.whole:
        return f"about {seconds} up to the first fault of the input"
    return f"{work.passes} passes, about {seconds}"


def measure_bias(engine: Engine, residues: Tokens) -> str | None:
    """Mean and spread of `pll-fast` minus `pll` over some residues of one sequence, in words; None if it has none.

    The sites are spread over the sequence, as many as `_BIAS_SITES`, and fewer in a long one.
    """
    scored = np.flatnonzero(is_scored(residues))
    count = min(len(scored), _BIAS_SITES, max(1, _BIAS_TOKENS // (len(residues) + 2)))
    if not count:
        return None
    sites = scored[np.linspace(0, len(scored) - 1, count).astype(np.int64)]
    fast = pseudo_log_likelihoods(engine, residues, fast=True)[sites]
    differences = fast - pseudo_log_likelihoods(engine, residues, among=sites)[sites]
    return f"{differences.mean():+.3f} nats per residue (standard deviation {differences.std():.3f}, {count} residues)"


def _seconds_per_token(engine: Engine) -> tuple[float, float]:
    """What a token costs, and what each token of its sequence adds to that: nothing if attention is linear."""
    short = _measured(engine, _SHORT)
    if engine.config.attention != "exact":
        return short, 0.0
    growing = max(0.0, (_measured(engine, _LONG) - short) / (_LONG - _SHORT))
    return max(0.0, short - growing * _SHORT), growing


def _measured(engine: Engine, length: int) -> float:
    rng = np.random.default_rng(0)
    tokens = rng.integers(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD, _LONG).astype(np.uint8)
    packed, borders = pack(np.split(tokens, range(length, _LONG, length)))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        engine.log_probs(packed, borders, MASKED)
        times.append(time.perf_counter() - start)
    return min(times) / _LONG


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"
