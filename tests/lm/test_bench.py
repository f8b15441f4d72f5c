"""The benchmark command: what it prints is what was measured, of the network and the lengths that were asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import error_line, in_process, table

import protperf.lm as lm
from protperf import errors
from protperf.lm.timing.child import TOKENS
from protperf.lm.timing.job import _ask


def test_both_tasks_are_timed_in_processes_of_their_own(small_size: Path) -> None:
    result = in_process("bench", "--size", small_size, "--lengths", "30,5000", "--repeats", 2, "--own", "-q")
    assert (result.returncode, result.stderr) == (0, b"")
    rows = table(result.stdout)
    assert [(row["task"], row["length"]) for row in rows] == [
        ("score", "30"), ("score", "5000"), ("train", "30"), ("train", "5000")
    ]  # fmt: skip
    for row in rows:
        packed, speed = int(row["tokens"]), float(row["tokens_per_s"])
        assert 0 < float(row["min_s"]) <= float(row["median_s"])
        assert speed == pytest.approx(packed / float(row["median_s"]), rel=1e-2)
        # A long sequence is read as a whole, short ones are packed.
        assert packed == 5002 if row["length"] == "5000" else TOKENS * 0.9 < packed <= TOKENS
    memory = {row["task"]: float(row["memory_mb"]) for row in rows}
    # Scoring is native; only training needs torch.
    assert 10 < memory["score"] < memory["train"] / 2


def test_a_run_stands_next_to_exact_attention(runs: dict[str, Path]) -> None:
    words = ["bench", runs["causal"], "--lengths", 20, "--task", "score", "--repeats", 1, "--json", "-q"]
    found = json.loads(in_process(*words).stdout)
    assert [(row["task"], row["attention"]) for row in found["rows"]] == [("score", "relu"), ("score", "exact")]
    assert found["num_threads"] == 1


def test_what_cannot_be_timed_is_refused_before_anything_runs(tmp_path: Path) -> None:
    lm.baseline((), tmp_path / "blosum", kind="blosum")
    for words, text in (
        ([tmp_path / "blosum"], "is not the run of a training"),
        ([tmp_path / "none"], "no such run directory"),
        (["--lengths", "20,x"], "'20,x' is not a list of lengths"),
        (["--task", "fly"], "choose one of score, train"),
    ):
        result = in_process("bench", *words)
        assert result.returncode in (2, 3)
        assert text in error_line(result)
    result = in_process("bench", "--task", "train", "--device", "wgpu")
    assert result.returncode == 4
    assert "wgpu reads models and does not train them" in error_line(result)
    with pytest.raises(errors.Error, match=r"timing score failed: .*no such run directory"):
        _ask({"task": "score", "run": str(tmp_path / "none"), "device": "cpu", "engine": "auto", "length": 5})
