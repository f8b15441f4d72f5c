"""Exported models: other libraries load them and compute what we compute."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import error_line, in_process
from conftest import small_config
from safetensors import safe_open
from safetensors.torch import load_file
from training import small_options, synthetic

from protperf.errors import ConfigError
from protperf.lm.alphabet import BOS, EOS, FIRST_RESIDUE, MASK, VOCABULARY
from protperf.lm.engine import CAUSAL, MASKED
from protperf.lm.export import convert as export
from protperf.lm.loading import load_run
from protperf.lm.model.config import ATTENTIONS
from protperf.lm.storage import checkpoint
from protperf.lm.training.run import train_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run with each kind of attention."""
    folder = tmp_path_factory.mktemp("runs")
    fasta = synthetic(folder / "in.fa")
    options = small_options(steps=6, checkpoint_every=1000, redraw_interval=2)
    return {a: train_run([fasta], folder / a, small_config(attention=a), options).run for a in ATTENTIONS}


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The library, which copies code of models into a folder of the test."""
    library = pytest.importorskip("transformers", reason="loads with transformers, which is not installed")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return library


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_folder_loads_in_transformers_and_gives_our_logits(
    attention: str, trained: dict[str, Path], transformers: Any, tmp_path: Path
) -> None:
    out = tmp_path / f"exported_{attention}"
    assert in_process("convert", trained[attention], "--to", "hf", "-o", out).returncode == 0
    engine = load_run(trained[attention]).engine
    rng = np.random.default_rng(3)
    lengths = (300, 41)
    padded = torch.full((2, 300), EOS)
    kept = torch.zeros(2, 300, dtype=torch.int64)
    rows = []
    for i, length in enumerate(lengths):
        x = rng.integers(FIRST_RESIDUE, 29, length).astype(np.uint8)
        x[[0, -1, 7]] = BOS, EOS, MASK
        rows.append(x)
        padded[i, :length], kept[i, :length] = torch.from_numpy(x.astype(np.int64)), 1
    for kind, mode in (("AutoModelForMaskedLM", MASKED), ("AutoModelForCausalLM", CAUSAL)):
        model = getattr(transformers, kind).from_pretrained(out, trust_remote_code=True).eval()
        with torch.no_grad():
            answer = model(padded, attention_mask=kept, labels=padded.where(kept.bool(), -100))
        assert torch.isfinite(answer.loss)
        for i, x in enumerate(rows):
            needed = engine.log_probs(x, np.array([0, len(x)]), mode)
            found = torch.log_softmax(answer.logits[i, : len(x)], -1).numpy()
            np.testing.assert_allclose(found, needed, atol=1e-4, rtol=0)
            hidden = engine.hidden(x, np.array([0, len(x)]), mode)
            np.testing.assert_allclose(answer.hidden_states[0][i, : len(x)].numpy(), hidden, atol=1e-3, rtol=0)


def test_the_tokenizer_frames_a_sequence_as_we_do(trained: dict[str, Path], transformers: Any, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    in_process("convert", trained["relu"], "--to", "hf", "-o", out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    letters = "".join(name for name in VOCABULARY if len(name) == 1)
    assert tokenizer(letters)["input_ids"] == [BOS, *range(3, 29), EOS]
    assert tokenizer("MK<mask>V")["input_ids"] == [BOS, *(VOCABULARY.index(c) for c in "MK"), MASK, 20, EOS]


def test_safetensors_hold_the_weights_and_the_configuration(trained: dict[str, Path], tmp_path: Path) -> None:
    out, run = tmp_path / "model.safetensors", trained["relu"]
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


def test_nothing_is_replaced_and_nothing_is_left(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    refused = in_process("convert", trained["relu"], "--to", "hf", "-o", tmp_path / "there")
    assert "exists already" in error_line(refused)
    assert refused.returncode == 3
    assert "make it first" in error_line(in_process("convert", trained["relu"], "--to", "hf", "-o", tmp_path / "a/b"))

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(export.durable, "write_file", full)
    assert in_process("convert", trained["relu"], "--to", "hf", "-o", tmp_path / "new").returncode == 3
    assert os.listdir(tmp_path) == ["there"]


def test_what_the_exported_code_does_not_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_OF_TRAINING", ())
    with pytest.raises(ConfigError, match=r"has dropout 0\.5, which a converted model cannot compute"):
        export._check_known(small_config(dropout=0.5))
    export._check_known(small_config())
