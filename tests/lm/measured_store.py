"""Runs in a process of its own: what a store costs from the input to batches, in MB at its peak.

python measured_store.py INPUT [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from protperf.lm.data.batches import build, epoch_plan
from protperf.lm.data.store import read_store, split


def memory_kb(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0])


def main(source: str, *folder: str) -> None:
    before = memory_kb("VmRSS")
    store = read_store(source, folder=Path(folder[0]) if folder else None)
    train, held = split(store, 0.1, 42)
    assert len(train.fingerprint) == len(held.fingerprint) == 64
    assert abs(train.unigram().sum() - 1) < 1e-9
    plan = epoch_plan(train.lengths, 16_384, 1024, 42, 0)
    # Enough to have touched every page of the file, if they were not given back.
    for batch in plan[:: max(1, len(plan) // 4000)]:
        assert build(train, batch, 1024, 42, 0).tokens.dtype == np.uint8
    print((memory_kb("VmHWM") - before) / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
