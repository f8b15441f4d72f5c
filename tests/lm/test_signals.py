"""Signals that end a training: the step is finished and saved, then the program ends as the signal would have it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import environment
from machine import HANG_S
from training import final_digests, losses, small_options, trainer
from warm import Warm

import protperf.lm as lm
from protperf.lm.storage import checkpoint
from protperf.lm.training import signals

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1]
GIVEN: dict[str, Any] = {"batch_tokens": 150, "validate": 0.1, "checkpoint_every": 100, "log_every": 1, "warmup": 1}


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as server:
        yield server


@pytest.fixture(autouse=True)
def _hang_ups_are_heard() -> Iterator[None]:
    """Under nohup this process ignores them, and what is ignored at entry stays ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_the_command_saves_and_ends_with_128_and_the_number(
    number: signal.Signals, warm: Warm, tmp_path: Path, fasta: Path, small_size: Path
) -> None:
    run, errors = tmp_path / "run", tmp_path / "errors"
    words = ["train", "--fasta", fasta, "-o", run, "--size", small_size, "--steps", 10**6, "--batch-tokens", 150]
    words += ["--log-every", 1, "--checkpoint-every", 10**6]
    process = warm.start({"words": [str(word) for word in words], "errors": errors})
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    os.kill(process, number)
    assert warm.wait() == 128 + number
    (step,) = checkpoint.steps(run)
    assert step >= 1
    assert (run / "metrics.jsonl").read_text().count('"loss"') == step
    said = errors.read_text().splitlines()
    assert said[0].startswith(f"protperf: {run}: {step} steps")
    assert said[-1] == "protperf: stopped and saved; continue with --resume"


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_train_from_python_saves_and_then_raises(
    number: signal.Signals, tmp_path: Path, fasta: Path, small_size: Path
) -> None:
    """A loop over three seeds ends with the first of them."""
    started = []

    def report(line: dict[str, Any]) -> None:
        if line["step"] == 3:
            signal.raise_signal(number)

    before = {each: signal.getsignal(each) for each in ENDING}
    with pytest.raises(BaseException) as caught:  # noqa: PT012
        for seed in (1, 2, 3):
            started.append(seed)
            lm.train(fasta, tmp_path / f"run-{seed}", size=str(small_size), steps=9, seed=seed, report=report, **GIVEN)
    assert started == [1]
    if number == signal.SIGINT:
        assert caught.type is KeyboardInterrupt
    else:
        assert caught.type is SystemExit
        assert caught.value.code == 128 + number  # type: ignore[attr-defined]
    assert checkpoint.steps(tmp_path / "run-1") == [3]
    assert {each: signal.getsignal(each) for each in ENDING} == before


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, fasta: Path) -> None:
    trainer(tmp_path / "golden", fasta).fit(lambda line: None)
    one = trainer(tmp_path / "run", fasta, small_options(checkpoint_every=7))

    def report(line: dict[str, Any]) -> None:
        if line["step"] == 4:
            signal.raise_signal(signal.SIGTERM)

    one.fit(report)
    assert one.stop_signal == signal.SIGTERM
    assert checkpoint.steps(tmp_path / "run") == [4]
    again = trainer(tmp_path / "run", fasta)
    again.restore(checkpoint.verify(tmp_path / "run" / "step-4"))
    again.fit(lambda line: None)
    assert losses(tmp_path / "run") == losses(tmp_path / "golden")
    assert final_digests(tmp_path / "run") == final_digests(tmp_path / "golden")


def test_a_stop_does_not_wait_for_a_validation(tmp_path: Path, fasta: Path) -> None:
    one = trainer(tmp_path / "run", fasta, small_options(checkpoint_every=7))
    one.loop.validation.measure = pytest.fail  # type: ignore[method-assign]
    assert one.fit(lambda line: setattr(one, "stop_signal", 15)) == {}
    assert checkpoint.steps(tmp_path / "run") == [1]


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_that_was_ignored_at_entry_stays_ignored(number: signal.Signals) -> None:
    noted: list[int] = []
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with signals.noted(noted.append):
            signal.raise_signal(number)
            other = signal.SIGTERM if number != signal.SIGTERM else signal.SIGHUP
            signal.raise_signal(other)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert noted == [other]


def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path, fasta: Path, small_size: Path) -> None:
    program = (
        "import os, signal, sys, protperf.lm as lm\n"
        "hang_up = lambda line: os.kill(os.getpid(), signal.SIGHUP)\n"
        f"lm.train(sys.argv[1], sys.argv[2], steps=3, size={str(small_size)!r}, report=hang_up, **{GIVEN!r})\n"
    )
    words = ["nohup", sys.executable, "-c", program, str(fasta), str(tmp_path / "run")]
    result = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=HANG_S, check=False
    )
    assert result.returncode == 0, result.stderr
    assert checkpoint.steps(tmp_path / "run") == [3]


def test_outside_of_the_main_thread_a_training_takes_no_signal(tmp_path: Path, fasta: Path) -> None:
    import threading

    before = {each: signal.getsignal(each) for each in ENDING}
    one = trainer(tmp_path / "run", fasta, small_options(steps=1))
    seen: list[Any] = []
    thread = threading.Thread(
        target=lambda: one.fit(lambda line: seen.append({each: signal.getsignal(each) for each in ENDING}))
    )
    thread.start()
    thread.join()
    assert seen[0] == before
    assert checkpoint.steps(tmp_path / "run") == [1]
