"""One measurement in a process of its own, so that its peak of memory is its own, too: `python -m` this, with JSON.

The first word of the command line is a request as `protperf.lm.timing.job` writes it; the answer is one line of JSON on
standard output.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from protperf import io
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD

TOKENS = 4096
"""Tokens that are read together, or one sequence if that is longer."""


def prepare(request: dict[str, Any]) -> dict[str, Any]:
    """Write a model with random weights: a run of one step."""
    from protperf.lm.data.store import TokenStore
    from protperf.lm.model.config import ModelConfig
    from protperf.lm.training.options import TrainOptions
    from protperf.lm.training.trainer import Trainer

    config, run = ModelConfig.from_mapping(request["config"]), Path(request["run"])
    options = TrainOptions(steps=1, validate=0.0, batch_tokens=64)
    nothing = TokenStore.packed(np.empty(0, np.uint8), np.zeros(1, np.int64))
    run.mkdir()
    Trainer(run, config, options, _store(30, 64), nothing).fit(lambda line: None)
    return {}


def score(request: dict[str, Any]) -> dict[str, Any]:
    """Score sequences of a length."""
    from protperf.lm.api import load

    model = load(request["run"], device=request["device"], engine=request["engine"])
    sequences = [io.decode(tokens) for tokens in _sequences(request["length"], TOKENS)]
    read = sum(len(sequence) + 2 for sequence in sequences)
    return {"tokens": read, **_timed(lambda: model.score(sequences, batch_tokens=TOKENS), request["repeats"])}


def train(request: dict[str, Any]) -> dict[str, Any]:
    """Make steps of a training on sequences of a length."""
    from protperf.lm.data.store import TokenStore
    from protperf.lm.device import chosen_device
    from protperf.lm.model.config import ModelConfig
    from protperf.lm.training.options import TrainOptions
    from protperf.lm.training.trainer import Trainer

    config, length = ModelConfig.from_mapping(request["config"]), request["length"]
    tokens = max(TOKENS, length + 2)
    options = TrainOptions(steps=10**6, validate=0.0, batch_tokens=tokens, crop=max(1024, length + 2))
    nothing = TokenStore.packed(np.empty(0, np.uint8), np.zeros(1, np.int64))
    device = chosen_device(request["device"])
    store = _store(length, 4 * tokens)
    loop = Trainer(Path("unused"), config, options, store, nothing, device=device).loop
    # What a step reads, on average over a pass.
    read = round((store.num_residues + 2 * len(store)) / loop.feed.num_batches(0))
    return {"tokens": read, **_timed(loop.step, request["repeats"])}


def _timed(work: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Seconds of repetitions, the first left out: it loads code and allocates."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return {"min_s": min(seconds[1:]), "median_s": median(seconds[1:]), "memory_mb": _peak_bytes() / 1e6}


def _peak_bytes() -> int:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says on Linux counts the process that started this one.
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _sequences(length: int, tokens: int) -> list[Any]:
    """Random residues, the same ones every time."""
    rng = np.random.default_rng(length)
    shape = (max(1, tokens // (length + 2)), length)
    return list(rng.integers(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD, shape).astype(np.uint8))


def _store(length: int, tokens: int) -> Any:
    from protperf.lm.data.store import TokenStore

    sequences = _sequences(length, tokens)
    offsets = np.arange(len(sequences) + 1, dtype=np.int64) * length
    return TokenStore.packed(np.concatenate(sequences), offsets)


def main() -> None:
    """Do what the request asks for and print the answer."""
    request = json.loads(sys.argv[1])
    work = {"prepare": prepare, "score": score, "train": train}[request["task"]]
    print(json.dumps(work(request)))


if __name__ == "__main__":
    main()
