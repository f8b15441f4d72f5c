"""Children of a process that uses the kernels compute the same bits and end, however they were started."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from machine import HANG_S
from worker_dataset import Computed, compute

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    monkeypatch.setenv("PROTPERF_NUM_THREADS", "2")


def fork_often(face, forks):
    command = [sys.executable, "-W", "error", HERE / "forked_calls.py", str(forks), face]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.parametrize(("face", "forks"), [("numpy", 30), ("torch", 5)])
def test_a_fork_before_during_and_after_use_computes_the_same_bits(face, forks):
    fork_often(face, forks)


@pytest.mark.soak
@pytest.mark.parametrize("face", ["numpy", "torch"])
def test_100_forks_before_during_and_after_use_compute_the_same_bits(face):
    fork_often(face, 100)


# Threads of this process make Python 3.12 and later warn at every fork; that the child works is what is tested.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(x, marks=pytest.mark.soak) for x in ("spawn", "forkserver"))]
)
def test_data_loader_workers_compute_the_same_bits(method):
    needed = [compute(index) for index in range(4)]
    loader = torch.utils.data.DataLoader(
        Computed(), batch_size=None, num_workers=2, multiprocessing_context=method, timeout=HANG_S
    )
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(needed, loader, strict=True))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_pool_of_processes_computes_the_same_bits():
    # As data loaders do for their workers: torch's own pool does not survive a fork.
    torch.set_num_threads(1)
    needed = [compute(index) for index in range(4)]
    with multiprocessing.get_context("fork").Pool(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = pool.map_async(compute, range(4)).get(timeout=HANG_S)
    assert all(np.array_equal(a, b) for a, b in zip(needed, found, strict=True))
