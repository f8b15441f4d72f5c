"""`--time` counts all that a run does: loading, steps, validations and saves. The clock is the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import small_config
from training import small_options, synthetic, trainer

from protperf.lm.data import store
from protperf.lm.storage import checkpoint
from protperf.lm.training import input as inputs
from protperf.lm.training import schedule
from protperf.lm.training.clock import Clock
from protperf.lm.training.loop import Checkpoint, Loop, MetricsLine
from protperf.lm.training.run import train_run
from protperf.lm.training.validation import Validation


class Costs:
    """A clock that only the work moves: each kind of it takes the seconds that it is given."""

    def __init__(self, load_s: float = 0.0, step_s: float = 0.0, validate_s: float = 0.0, save_s: float = 0.0) -> None:
        self.now_s = 0.0
        self._costs = {
            (inputs, "read_store"): load_s,
            (Loop, "_backward"): step_s,
            (Validation, "measure"): validate_s,
            (checkpoint, "_publish"): save_s,
        }

    def train(self, run: Path, **changes: Any) -> Clock:
        """Train on this clock; returns it."""
        clock = Clock(lambda: self.now_s)
        options = small_options(steps=None, **{"checkpoint_every": 0, **changes})
        fasta = synthetic(run.with_name("proteins.fasta"))
        patches = [
            mock.patch.object(*place, self._taking(getattr(*place), cost)) for place, cost in self._costs.items()
        ]
        try:
            for patch in patches:
                patch.start()
            train_run(fasta, run, small_config(), options, clock=clock, warn=lambda text: None)
        finally:
            for patch in patches:
                patch.stop()
        return clock

    def _taking(self, work: Any, cost_s: float) -> Any:
        def slow(*arguments: Any, **options: Any) -> Any:
            # A manifest is made after the files that took the time.
            self.now_s += cost_s
            return work(*arguments, **options)

        return slow


@pytest.mark.parametrize(
    "costs",
    [
        {"step_s": 0.4},
        {"step_s": 0.4, "load_s": 10.0},
        {"step_s": 0.4, "validate_s": 3.0},
        {"step_s": 0.4, "save_s": 3.0},
        {"step_s": 0.5, "load_s": 6.0, "validate_s": 2.0, "save_s": 2.0},
        {"step_s": 2.0, "validate_s": 1.0, "save_s": 1.0},
        {"step_s": 12.0, "validate_s": 2.0},
    ],
    ids=str,
)
def test_a_run_takes_the_time_that_it_is_given(costs: dict[str, float], tmp_path: Path) -> None:
    clock = Costs(**costs).train(tmp_path / "run", time_s=60.0)
    assert clock.elapsed_s() <= 60.0
    # A twentieth, or what one more step would have taken.
    assert clock.elapsed_s() >= 60.0 - max(3.0, costs["step_s"] + costs.get("validate_s", 0.0))
    (last, *_) = checkpoint.steps(tmp_path / "run")
    progress = checkpoint.verify(tmp_path / "run" / f"step-{last}").manifest["progress"]
    assert progress["total_steps"] == last
    assert progress["wall_s"] == pytest.approx(clock.elapsed_s())


def test_a_time_that_loading_used_up_still_makes_one_step(tmp_path: Path) -> None:
    clock = Costs(step_s=0.1, load_s=50.0).train(tmp_path / "run", time_s=20.0)
    assert checkpoint.steps(tmp_path / "run") == [1]
    assert clock.elapsed_s() == pytest.approx(50.1)


def test_the_clock_counts_on_over_resumes() -> None:
    times = iter([100.0, 130.0, 131.0])
    clock = Clock(lambda: next(times))
    assert clock.elapsed_s() == 30.0
    clock.resume(1000.0)
    assert clock.elapsed_s() == 1031.0


@pytest.mark.parametrize("left_s", [-5.0, 0.0, 0.5])
def test_no_time_left_means_no_more_steps(left_s: float) -> None:
    assert schedule.more_steps(small_options(steps=None, time_s=60.0), 9, left_s, 1.0, 1.0) == 0


def test_reading_counts_from_where_the_clock_was_made(tmp_path: Path) -> None:
    """The command makes it before it loads torch."""
    assert inputs.read_store is store.read_store
    now_s = 25.0
    clock = Clock(lambda: now_s)
    now_s = 40.0
    fasta = synthetic(tmp_path / "proteins.fasta")
    torch.set_num_threads(1)
    train_run(fasta, tmp_path / "run", small_config(), small_options(steps=1), clock=clock)
    assert checkpoint.verify(tmp_path / "run" / "step-1").manifest["progress"]["wall_s"] == 15.0


def test_a_loop_whose_checkpoints_are_not_kept_ends_in_time_too(tmp_path: Path) -> None:
    """The loop itself knows no file: it can be run for its events alone."""
    one = trainer(tmp_path / "run", synthetic(tmp_path / "proteins.fasta"), small_options(steps=None, time_s=30.0))
    costs = Costs()
    one.loop.clock = Clock(lambda: costs.now_s)
    one.loop._backward = costs._taking(one.loop._backward, 0.2)  # type: ignore[method-assign]
    one.loop.validation.measure = costs._taking(one.loop.validation.measure, 0.1)  # type: ignore[method-assign]
    lines = checkpoints = 0
    for event in one.loop.run(lambda: False):
        lines += isinstance(event, MetricsLine)
        checkpoints += isinstance(event, Checkpoint)
    assert one.loop.progress.total_steps == one.loop.progress.step > 50
    assert lines == 2 * checkpoints
    assert 28.0 <= costs.now_s <= 30.0
    assert list((tmp_path / "run").iterdir()) == []
