"""How long a scoring will take, told before it begins."""

from __future__ import annotations

import os
import time

import numpy as np
import torch

from protperf import io
from protperf.errors import DataError
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD
from protperf.lm.model.network import MASKED, Network

_SAMPLE = 2048


def estimate_pll(network: Network, paths: list[str], residues: str) -> str:
    """The passes and the time of `pll` in words; for pipes, which can be read but once, the time of 300 residues."""
    rate = _tokens_per_s(network)
    if not all(os.path.isfile(path) for path in paths):
        return f"about {_duration(300 * 302 / rate)} for a protein of 300"
    passes = tokens = 0
    try:
        for batch in io.read_tokens(paths, residues=residues):
            passes += int(batch.lengths.sum())
            tokens += int((batch.lengths * (batch.lengths + 2)).sum())
    except DataError:
        return f"about {_duration(tokens / rate)} up to the first fault of the input"
    return f"{passes} passes, about {_duration(tokens / rate)}"


def _tokens_per_s(network: Network) -> float:
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.integers(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD, _SAMPLE).astype(np.uint8))
    borders = torch.arange(0, _SAMPLE + 1, _SAMPLE // 8)
    times = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            network(tokens, borders, MASKED)
            times.append(time.perf_counter() - start)
    return _SAMPLE / min(times)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"
