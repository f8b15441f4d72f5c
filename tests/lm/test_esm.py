"""ESM-2 folders with random weights: the reading commands take them. `test_transformers.py` has the logits."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import error_line, in_process, table, write_fasta
from safetensors.torch import load_file, save_file

import protperf.lm as lm
from protperf import io
from protperf.errors import CheckpointError, ConfigError
from protperf.lm.alphabet import BOS, EOS, FIRST_RESIDUE, MASK
from protperf.lm.engine import CAUSAL, MASKED
from protperf.lm.loading import load_run
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.esm_folder import expected_shapes

CONFIG: dict[str, Any] = {
    "model_type": "esm",
    "vocab_size": 33,
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "layer_norm_eps": 1e-5,
    "position_embedding_type": "rotary",
    "token_dropout": True,
    "emb_layer_norm_before": False,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "max_position_embeddings": 1026,
}
THEIRS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]


def write_folder(path: Path, **changes: Any) -> Path:
    """A folder of a small ESM-2 with random weights, without transformers."""
    config = {**CONFIG, **changes}
    sizes = ModelConfig(
        num_layers=2, model_dim=24, num_heads=3, head_dim=8, ffn_dim=40, num_features=1, objective="masked"
    )
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, shape in expected_shapes(sizes, 33, bool(config["emb_layer_norm_before"])).items():
        drawn = torch.randn(shape, generator=generator) * 0.3
        tensors[name] = 1 + drawn if name.endswith(("orm.weight", "after.weight")) else drawn
    # What real folders hold besides.
    tensors["esm.embeddings.position_ids"] = torch.arange(1026)[None]
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    (path / "vocab.txt").write_text("\n".join(THEIRS))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("esm") / "model")


def packed() -> tuple[np.ndarray, np.ndarray]:
    """Three framed sequences with masks and every residue, one of them longer than the table of positions of ESM-1."""
    rng = np.random.default_rng(4)
    parts = []
    for length, masked in ((26, 0), (70, 9), (1100, 1)):
        x = rng.integers(FIRST_RESIDUE, 23, length).astype(np.uint8)
        x[rng.choice(length, masked, replace=False)] = MASK
        parts.append(np.concatenate([[BOS], x, [EOS]]).astype(np.uint8))
    parts[0][1:27] = np.arange(3, 29)
    return np.concatenate(parts), np.cumsum([0, *map(len, parts)])


def test_packing_float64_and_shards_change_nothing(folder: Path, tmp_path: Path) -> None:
    tokens, borders = packed()
    engine, double = load_run(folder).engine, load_run(folder, "float64").engine
    whole = engine.log_probs(tokens, borders, MASKED)
    exact = double.log_probs(tokens, borders, MASKED)
    assert exact.dtype == np.float64
    np.testing.assert_allclose(whole, exact, atol=1e-4, rtol=0)
    low, high = borders[1:3]
    alone = engine.log_probs(tokens[low:high], np.array([0, high - low]), MASKED, np.array([5, 2]))
    np.testing.assert_allclose(alone, whole[[low + 5, low + 2]], atol=1e-5, rtol=0)
    # Shards behind links, as in a cache, and the vocabulary that every ESM-2 has.
    tensors = sorted(load_file(folder / "model.safetensors").items())
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    parts = {"a.safetensors": dict(tensors[::2]), "b.safetensors": dict(tensors[1::2])}
    for name, part in parts.items():
        save_file(part, tmp_path / name)
        (sharded / name).symlink_to(tmp_path / name)
    (sharded / "config.json").write_bytes((folder / "config.json").read_bytes())
    index = {"weight_map": {tensor: name for name, part in parts.items() for tensor in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    np.testing.assert_array_equal(load_run(sharded).engine.log_probs(tokens, borders, MASKED), whole)


def test_commands_read_a_folder(folder: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path / "in.fa", {"a": "MKTAYIAKQR", "b": "GGSLW"})
    rows = table(in_process("score", folder, fasta).stdout)
    assert [(row["id"], row["method"]) for row in rows] == [("a", "pll"), ("b", "pll")]
    wild = write_fasta(tmp_path / "wt.fa", {"a": "MKTAYIAKQR"})
    scan = table(in_process("scan", folder, wild, "--region", "2-4").stdout)
    assert len(scan) == 3 * 19
    (tmp_path / "v.txt").write_text("K2A\nK2A:T3G\n")
    scored = table(in_process("variants", folder, tmp_path / "v.txt", "--wt", wild).stdout)
    by_change = {f"{row['wt']}{row['pos']}{row['mt']}": float(row["score"]) for row in scan}
    assert float(scored[0]["score"]) == pytest.approx(by_change["K2A"], abs=1e-5)
    assert float(scored[1]["score"]) == pytest.approx(by_change["K2A"] + by_change["T3G"], abs=1e-5)
    vectors = lm.load(folder).embed([("a", "MKTAYIAKQR")], pool="mean")
    tokens = np.concatenate([[BOS], io.encode("MKTAYIAKQR")[0], [EOS]]).astype(np.uint8)
    hidden = load_run(folder).engine.hidden(tokens, np.array([0, 12]), MASKED)
    np.testing.assert_allclose(vectors.vectors[0], hidden[1:-1].mean(0), atol=1e-5)
    filled = in_process("generate", folder, "-n", 3, "--infill", "--template", "MKT__IAKQR").stdout.decode()
    assert len(re.findall("^MKT[A-Z]{2}IAKQR$", filled, re.MULTILINE)) == 3
    assert "use --infill or --fix-positions with --template" in error_line(in_process("generate", folder, "-n", 3))
    assert "use --method pll" in error_line(in_process("score", folder, fasta, "--method", "ll"))
    refused = in_process("score", folder, fasta, "--engine", "native")
    assert refused.returncode == 2
    assert "ESM-2 is computed by torch; leave --engine native out" in error_line(refused)


def test_info_and_doctor_know_a_folder(folder: Path) -> None:
    facts = json.loads(in_process("info", folder, "--json").stdout)
    parameters = sum(
        math.prod(x.shape) for x in load_file(folder / "model.safetensors").values() if x.is_floating_point()
    )
    assert (facts["model"], facts["parameters"], facts["objective"]) == ("ESM-2", parameters, "masked")
    assert facts["model_sha256"] == load_run(folder).step.manifest["files"]["model.safetensors"]["sha256"]
    answer = in_process("doctor", "--model", folder, "--json")
    assert answer.returncode == 0
    names = [check["name"] for check in json.loads(answer.stdout)["checks"]]
    assert "pll, batched against alone" in names


def test_reading_left_to_right_is_refused(folder: Path) -> None:
    engine = load_run(folder).engine
    with pytest.raises(ConfigError, match="does not read left to right"):
        engine.log_probs(*packed(), CAUSAL)
    with pytest.raises(ConfigError, match="no state"):
        engine.empty_state()
    with pytest.raises(ConfigError, match="layer is 3"):
        engine.hidden(*packed(), MASKED, 3)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"position_embedding_type": "absolute"}, "learned positions"),
        ({"model_type": "bert"}, "of a model of type 'bert'"),
        ({"hidden_size": 25}, "hidden_size 25"),
        ({"hidden_size": 48}, r"F32 \[33, 48\] is needed"),
        ({"num_hidden_layers": 3}, "has no tensor esm.encoder.layer.2"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps"),
        ({"vocab_size": 0}, "vocab_size"),
    ],
)
def test_a_folder_that_is_not_esm2_is_refused_with_its_fault(
    folder: Path, tmp_path: Path, changes: dict[str, Any], needed: str
) -> None:
    place = tmp_path / "model"
    place.mkdir()
    (place / "model.safetensors").symlink_to(folder / "model.safetensors")
    (place / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    with pytest.raises(CheckpointError, match=needed):
        load_run(place)


def test_weights_in_a_pickle_are_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="safe_serialization=True"):
        load_run(tmp_path)
