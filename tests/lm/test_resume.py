"""A run killed with SIGKILL and resumed is the uninterrupted run: every loss and the final weights, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_config
from training import final_digests, losses, metrics, small_options, trainer
from warm import Warm

from protperf.lm.data import batches
from protperf.lm.data.store import read_store, split
from protperf.lm.storage import checkpoint
from protperf.lm.training.options import TrainOptions

KILLS = 5
"""Of each kind of run."""
MUON = {"optimizer": "muon", "steps": 32, "accumulate": 1, "checkpoint_every": 3, "crop": 24, "starts": "varied"}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "relu-both": ({}, {"steps": 30, "accumulate": 3, "redraw_interval": 7}),
    "softmax-both": (
        {"attention": "softmax"},
        {"steps": None, "epochs": 7.0, "redraw_interval": 4},
    ),
    "exact-masked": ({"attention": "exact", "objective": "masked"}, {"steps": 36, "checkpoint_every": 2}),
    "relu-causal": ({"objective": "causal", "directions": "both"}, MUON),
}


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as server:
        yield server


def job(run: Path, fasta: Path, name: str, *, resume: bool = False, kill_at: int | None = None) -> dict[str, Any]:
    choices, changes = RUNS[name]
    config = small_config(dropout=0.1, **choices)
    options = small_options(**changes)
    table = {"config": config.to_mapping(), "options": options.to_mapping()}
    return {"run": run, "fasta": fasta, "resume": resume, "kill_at": kill_at, **table}


def moments(fasta: Path, options: TrainOptions, passes: int) -> list[set[str]]:
    """What is special about each forward pass of a run, counted from 0."""
    train, _ = split(read_store(fasta), 0.1, 42)
    edges: set[int] = set()
    batch = 0
    for epoch in itertools.count():
        if batch > passes:
            break
        batch += len(batches.epoch_plan(train.lengths, options.batch_tokens, options.crop, options.seed, epoch))
        edges |= {batch // options.accumulate}
    kinds = []
    for number in range(passes):
        step, micro = divmod(number, options.accumulate)
        kind = {"epoch edge" if step in edges else "mid-epoch"}
        kind |= {"mid-accumulation"} if micro else set()
        kind |= {"redraw"} if options.redraw_interval and step % options.redraw_interval == 0 else set()
        # Warm-up is at most a tenth of the run.
        kind |= {"after warm-up"} if step > 3 else {"warm-up"}
        kinds.append(kind)
    return kinds


def chosen(kinds: list[set[str]], first: int, count: int, rng: np.random.Generator) -> list[int]:
    """Passes at random, one of each kind before any other."""
    found: list[int] = []
    seen: set[str] = set()
    order = [int(number) for number in rng.permutation(np.arange(first, len(kinds)))]
    for number in sorted(order, key=lambda number: -len(kinds[number])):
        if not kinds[number] <= seen and len(found) < count:
            found.append(number)
            seen |= kinds[number]
    return found + [number for number in order if number not in found][: count - len(found)]


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_resumes_bit_for_bit(name: str, warm: Warm, tmp_path: Path, fasta: Path) -> None:
    assert warm.run(job(tmp_path / "golden", fasta, name)) == 0
    golden = metrics(tmp_path / "golden")
    options = small_options(**RUNS[name][1])
    steps = golden[-1]["step"]
    assert steps >= 30
    kinds = moments(fasta, options, steps * options.accumulate)
    first = (options.checkpoint_every + 1) * options.accumulate
    kills = chosen(kinds, first, KILLS, np.random.default_rng(7))
    wanted = {"epoch edge", "mid-epoch", "after warm-up"}
    wanted |= {"mid-accumulation"} if options.accumulate > 1 else set()
    wanted |= {"redraw"} if options.redraw_interval else set()
    assert wanted <= set().union(*(kinds[kill] for kill in kills))
    for kill in kills:
        run = tmp_path / f"killed-{kill}"
        assert warm.run(job(run, fasta, name, kill_at=kill)) == -signal.SIGKILL
        assert warm.run(job(run, fasta, name, resume=True)) == 0
        assert metrics(run) == golden, kill
        assert final_digests(run) == final_digests(tmp_path / "golden"), kill


def killed_at_random(warm: Warm, run: Path, fasta: Path, name: str, rng: np.random.Generator, span_s: float) -> int:
    """Train to the end through kills at random times; returns how many there were.

    A state that cannot be resumed fails here: the resumed process would end with an error.
    """
    kills = 0
    while True:
        # Killed before its first checkpoint, a run is started by the same command.
        resume = (run / "config.toml").exists()
        process = warm.start(job(run, fasta, name, resume=resume))
        time.sleep(float(rng.uniform(0, span_s)))
        with contextlib.suppress(ProcessLookupError):  # it has ended by then
            os.kill(process, signal.SIGKILL)
        status = warm.wait()
        if status == 0:
            return kills
        assert status == -signal.SIGKILL
        kills += 1


@pytest.mark.soak
def test_500_kills_at_random_times_change_nothing(warm: Warm, tmp_path: Path, fasta: Path) -> None:
    wanted = int(os.environ.get("PROTPERF_KILLS", "500"))
    golden = {}
    for name in RUNS:
        began = time.monotonic()
        assert warm.run(job(tmp_path / name, fasta, name)) == 0
        golden[name] = metrics(tmp_path / name), final_digests(tmp_path / name), time.monotonic() - began
    rng = np.random.default_rng(int(os.environ.get("PROTPERF_SEED", "0")))
    kills = runs = 0
    while kills < wanted:
        name = list(RUNS)[runs % len(RUNS)]
        lines, digests, wall_s = golden[name]
        kills += killed_at_random(warm, tmp_path / "run", fasta, name, rng, 0.5 * wall_s)
        assert metrics(tmp_path / "run") == lines
        assert final_digests(tmp_path / "run") == digests
        shutil.rmtree(tmp_path / "run")
        runs += 1
    print(f"\n{kills} kills in {runs} runs, 0 differences")


def test_a_timed_run_resumes_bit_for_bit_once_its_number_of_steps_is_known(
    warm: Warm, tmp_path: Path, fasta: Path
) -> None:
    table = {"config": small_config(dropout=0.1).to_mapping(), "kill_at": None, "resume": False, "fasta": fasta}
    table |= {"options": small_options(steps=None, time_s=2.0, checkpoint_every=0).to_mapping(), "tick_s": 0.02}
    started = tmp_path / "started"
    process = warm.start({**table, "run": started})
    while not any(started.glob("step-*")):
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert warm.wait() == -signal.SIGKILL
    # The first checkpoint is the one that keeps the number.
    (step,) = map(checkpoint.verify, started.glob("step-*"))
    total = step.manifest["progress"]["total_steps"]
    assert total > step.number >= 5
    one, two = (Path(shutil.copytree(started, tmp_path / name)) for name in ("one", "two"))
    assert warm.run({**table, "run": one, "resume": True}) == 0
    kill = (total - step.number) // 2 * 2
    assert warm.run({**table, "run": two, "resume": True, "kill_at": kill}) == -signal.SIGKILL
    assert warm.run({**table, "run": two, "resume": True}) == 0
    assert metrics(one)[-1]["step"] == total
    assert metrics(one) == metrics(two)
    assert final_digests(one) == final_digests(two)


def test_a_signal_before_the_first_step_leaves_a_run_that_resumes(tmp_path: Path, fasta: Path) -> None:
    trainer(tmp_path / "golden", fasta).fit(lambda line: None)
    stopped = trainer(tmp_path / "run", fasta)
    stopped.stop_signal = signal.SIGTERM
    stopped.fit(lambda line: None)
    assert checkpoint.steps(tmp_path / "run") == [0]
    again = trainer(tmp_path / "run", fasta)
    again.restore(checkpoint.verify(tmp_path / "run" / "step-0"))
    again.fit(lambda line: None)
    assert losses(tmp_path / "run") == losses(tmp_path / "golden")
    assert final_digests(tmp_path / "run") == final_digests(tmp_path / "golden")


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path, fasta: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    trainer(tmp_path / "run", fasta, small_options(steps=1)).fit(lambda line: None)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_any_seed_trains(seed: int, tmp_path: Path, fasta: Path) -> None:
    one = trainer(tmp_path / "run", fasta, small_options(steps=1, seed=seed), seed=seed)
    one.fit(lambda line: None)
    (line,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][:1]
    assert np.isfinite(line["loss"])
