"""`train --dry-run`: what a training would take, without a trace of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from commands import in_process
from conftest import small_config
from training import OPTIONS, synthetic

from protperf.lm.training.forecast import forecast
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.run import train_run


@pytest.mark.parametrize("length", [{"steps": 7}, {"steps": None, "epochs": 2.0}, {"steps": None, "time_s": 30.0}])
def test_the_forecast_of_steps_is_what_a_training_makes(length: dict[str, Any], tmp_path: Path) -> None:
    fasta, options = synthetic(tmp_path / "in.fa"), TrainOptions(**{**OPTIONS, "checkpoint_every": 100, **length})
    found = forecast(fasta, tmp_path / "run", small_config(), options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.fa"]
    assert found.step_s > 0
    assert found.memory_bytes > 1 << 20
    if "time_s" in length:
        assert 0.7 * 30 < found.wall_s <= 30
        return
    outcome = train_run(fasta, tmp_path / "run", small_config(), options)
    # Micro-batches that are left over at the end of an epoch are filled from the next one.
    assert outcome.steps == found.steps
    size = sum((tmp_path / "run" / f"step-{outcome.steps}" / f"{x}.safetensors").stat().st_size
               for x in ("model", "trainer"))  # fmt: skip
    assert found.checkpoint_bytes < size < found.checkpoint_bytes + 20_000


def test_the_command_says_it_and_writes_nothing(tmp_path: Path) -> None:
    words = ["train", "--fasta", synthetic(tmp_path / "in.fa"), "-o", tmp_path / "run", "--steps", 5, "--dry-run"]
    result = in_process(*words, "--batch-tokens", 100, "--recipe", "plain")
    assert (result.returncode, result.stdout) == (0, b"")
    assert re.search(r"about 5 steps, \d+\.\d passes over the sequences, in \d+ seconds", result.stderr.decode())
    assert not (tmp_path / "run").exists()
