"""Models of the library transformers and ours, each loaded by the other: in one file, for it takes long to import."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import in_process
from conftest import small_config
from test_esm import THEIRS, packed, write_folder
from training import small_options, synthetic

from protperf.lm.alphabet import BOS, EOS, FIRST_RESIDUE, MASK, VOCABULARY
from protperf.lm.engine import CAUSAL, MASKED
from protperf.lm.loading import load_run
from protperf.lm.model.config import ATTENTIONS
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


@pytest.mark.parametrize(
    "changes", [{}, {"token_dropout": False, "emb_layer_norm_before": True}], ids=["esm2", "other"]
)
def test_logits_and_hidden_states_of_esm2_are_those_of_transformers(
    tmp_path: Path, changes: dict[str, Any], transformers: Any
) -> None:
    place = write_folder(tmp_path / "model", **changes)
    theirs = transformers.EsmForMaskedLM.from_pretrained(place).eval()
    tokens, borders = packed()
    engine = load_run(place).engine
    found = engine.log_probs(tokens, borders, MASKED)
    ids = [THEIRS.index({"<bos>": "<cls>", "J": "<unk>"}.get(name, name)) for name in VOCABULARY]
    for low, high in itertools.pairwise(borders):
        given = torch.tensor([[ids[token] for token in tokens[low:high]]])
        with torch.no_grad():
            answer = theirs(given, attention_mask=torch.ones_like(given), output_hidden_states=True)
        needed = torch.log_softmax(answer.logits[0], -1)[:, ids].numpy()
        assert np.ptp(needed) > 3, "predictions that hardly differ would agree by themselves"
        np.testing.assert_allclose(found[low:high], needed, atol=1e-4, rtol=0)
        for layer in (0, 1, -1):
            hidden = engine.hidden(tokens, borders, MASKED, layer)[low:high]
            np.testing.assert_allclose(hidden, answer.hidden_states[layer][0].numpy(), atol=1e-4, rtol=0)
