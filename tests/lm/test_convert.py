"""Exported models: files that hold what they should, and what is refused. `test_transformers.py` loads them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import error_line, in_process
from conftest import small_config
from safetensors import safe_open
from safetensors.torch import load_file

from protperf.errors import ConfigError
from protperf.lm.alphabet import VOCABULARY
from protperf.lm.export import convert as export
from protperf.lm.loading import load_run
from protperf.lm.scoring.likelihood import log_likelihoods
from protperf.lm.storage import checkpoint


def test_safetensors_hold_the_weights_and_the_configuration(runs: dict[str, Path], tmp_path: Path) -> None:
    out, run = tmp_path / "model.safetensors", runs["both"]
    said = in_process("convert", run, "--to", "safetensors", "-o", out)
    step = checkpoint.find(run)
    assert f"{step.path} was written to {out}" in said.stderr.decode()
    ours, theirs = load_file(step.path / "model.safetensors"), load_file(out)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"]) == load_run(run).engine.config.to_mapping()
    assert json.loads(metadata["vocabulary"]) == list(VOCABULARY)


def test_a_model_to_share_is_half_as_large_and_scores_the_same(runs: dict[str, Path], tmp_path: Path) -> None:
    out, step = tmp_path / "shared", checkpoint.find(runs["both"])
    assert in_process("convert", runs["both"], "--to", "model", "-o", out).returncode == 0
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in (out, step.path)]
    assert sizes[0] < 0.6 * sizes[1]
    residues = [np.frombuffer(b"\4\5\6\7\10\11", np.uint8)]
    scores = [log_likelihoods(load_run(folder).engine, residues)[0] for folder in (out, runs["both"])]
    np.testing.assert_array_equal(*scores)
    facts = [json.loads(in_process("info", folder, "--json").stdout) for folder in (out, runs["both"])]
    assert all(facts[0][name] == facts[1][name] for name in facts[1] if name != "path")
    assert "no run" in error_line(in_process("train", "--resume", "-o", out, "--fasta", out / "config.json"))


def test_nothing_is_replaced_and_nothing_is_left(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    refused = in_process("convert", runs["both"], "--to", "hf", "-o", tmp_path / "there")
    assert "exists already" in error_line(refused)
    assert refused.returncode == 3
    assert "make it first" in error_line(in_process("convert", runs["both"], "--to", "hf", "-o", tmp_path / "a/b"))

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(export.durable, "write_file", full)
    assert in_process("convert", runs["both"], "--to", "hf", "-o", tmp_path / "new").returncode == 3
    assert os.listdir(tmp_path) == ["there"]


def test_what_the_exported_code_does_not_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_OF_TRAINING", ())
    with pytest.raises(ConfigError, match=r"has dropout 0\.5, which a converted model cannot compute"):
        export._check_known(small_config(dropout=0.5))
    export._check_known(small_config())
