"""`train --logger tensorboard`: what TensorBoard reads is what `metrics.jsonl` has."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import error_line, in_process
from training import small_options, synthetic, trainer

from protperf.lm.storage import checkpoint


def test_without_the_package_nothing_is_started(
    fasta: Path, small_size: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--size", small_size, "--steps", 1]
    result = in_process(*words, "--logger", "tensorboard")
    assert result.returncode == 4
    assert "install it with pip install tensorboard" in error_line(result)
    assert not (tmp_path / "run").exists()


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [(one.step, one.value) for one in found.Scalars(name)] for name in found.Tags()["scalars"]}


def metrics(run: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for name, value in line.items():
            if name != "step":
                found.setdefault(name, []).append((line["step"], value))
    return found


def test_a_run_that_is_resumed_has_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    fasta, options = synthetic(tmp_path / "in.fa"), small_options(steps=6, logger="tensorboard")

    def stop(line: dict[str, Any]) -> None:
        if "loss" in line and line["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", fasta, options).fit(stop)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    again = trainer(tmp_path / "run", fasta, options)
    again.restore(checkpoint.verify(tmp_path / "run" / "step-3"))
    again.fit(lambda line: None)
    shown, written = scalars(tmp_path / "run"), metrics(tmp_path / "run")
    assert {"loss", "lr", "val_loss", "val_perplexity"} < set(shown) == set(written)
    assert [step for step, _ in shown["loss"]] == [1, 2, 3, 4, 5, 6]
    for name, values in written.items():
        late = [pair for pair in shown[name] if pair[0] > 3]
        assert all(math.isclose(a, b, rel_tol=1e-6) for (_, a), (_, b) in zip(late, values, strict=True)), name


def test_force_replaces_the_events_and_nothing_of_anyone_else(fasta: Path, small_size: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--size", small_size, "--log-every", 1, "-q", "--force"]
    assert in_process(*words, "--steps", 3, "--logger", "tensorboard").returncode == 0
    assert len(scalars(tmp_path / "run")["loss"]) == 3
    assert in_process(*words, "--steps", 1).returncode == 0
    assert not (tmp_path / "run" / "tensorboard").exists()
    (tmp_path / "run" / "tensorboard").mkdir()
    (tmp_path / "run" / "tensorboard" / "mine.txt").touch()
    assert "is not removed" in error_line(in_process(*words, "--steps", 1))
