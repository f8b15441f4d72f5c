"""Scores in forked processes and in many threads: no hang, and no setting of the program left changed."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import environment
from conftest import small_config
from machine import HANG_S

from protperf import io
from protperf.lm.model import torch_process
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.scoring.likelihood import score_records

FORKING = """
import os, sys, warnings
import torch
import protperf.lm as lm

torch.set_num_threads(2)
model = lm.load(sys.argv[1], engine="torch")
# A product large enough that torch's own threads take part.
torch.ones(2000, 2000) @ torch.ones(2000, 2000)
before = [row.ll for row in model.score(["MKVA" * 500, "ACD"])]
child = os.fork()
if child == 0:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        rows = model.score(["MKVA" * 500, "ACD"])
        torch.ones(2000, 2000) @ torch.ones(2000, 2000)
        again = lm.load(sys.argv[1], engine="torch").score("ACD")
    close = all(abs(row.ll - ll) < 1e-2 for row, ll in zip(rows, before))
    message = [str(one.message) for one in said]
    os._exit(0 if close and len(again) == 1 and len(message) == 1 and "one thread of torch" in message[0] else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_scores_with_one_thread_and_says_so(runs: dict[str, Path]) -> None:
    words = [sys.executable, "-c", FORKING, str(runs["both"])]
    done = subprocess.run(words, capture_output=True, env=environment(PROTPERF_NUM_THREADS="2"), timeout=HANG_S)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture
def two_threads() -> object:
    """torch with two threads, here and in threads that start later."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_a_thread(work: object) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))  # type: ignore[operator]
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.usefixtures("two_threads")
def test_one_thread_of_torch_is_a_matter_of_the_thread_that_asks() -> None:
    inside, leave, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        with torch_process.one_torch_thread():
            inside.set()
            leave.wait(HANG_S)
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(HANG_S)
    assert in_a_thread(torch.get_num_threads) == 2
    with torch_process.one_torch_thread():
        # The first leaves while the second is inside.
        leave.set()
        thread.join()
        assert torch.get_num_threads() == 1
        assert in_a_thread(torch.get_num_threads) == 2
    assert seen == [1, 2]
    assert torch.get_num_threads() == 2
    assert in_a_thread(torch.get_num_threads) == 2


@pytest.mark.usefixtures("two_threads")
def test_deterministic_scores_from_many_threads_leave_torch_as_it_was() -> None:
    network = TorchEngine(Network(small_config()).eval())
    rng = np.random.default_rng(0)
    given = [io.Record(i, f"r{i}", "", rng.integers(3, 23, 40).astype(np.uint8), 0, "", 0) for i in range(12)]
    expected = [row.ll for row in score_records(network, given, "ll", deterministic=True)]
    seen: list[tuple[list[float], int]] = []

    def work() -> None:
        lls = []
        for row in score_records(network, given, "ll", deterministic=True):
            lls.append(row.ll)
            # What the program does between two rows is its own.
            seen_here.append(torch.get_num_threads())
        seen.append((lls, torch.get_num_threads()))

    seen_here: list[int] = []
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [(expected, 2)] * 6
    assert set(seen_here) == {2}
    assert in_a_thread(torch.get_num_threads) == 2
