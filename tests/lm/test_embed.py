"""Vectors against brute force: each pool computed by hand from the hidden states of each sequence read alone."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from commands import write_fasta
from conftest import small_config

import protperf.lm as lm
from protperf import io
from protperf.errors import ConfigError, DataError, MissingPackageError
from protperf.lm import inference
from protperf.lm.alphabet import BOS, EOS
from protperf.lm.embedding import vectors
from protperf.lm.embedding.options import POOLS, EmbedOptions, EmbedOutput, choose_mode
from protperf.lm.embedding.vectors import Embedded, embed_batches, hidden_states
from protperf.lm.engine import CAUSAL, MASKED, Engine
from protperf.lm.loading import load_run
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.network import Pool

LENGTHS = (1, 2, 3, 15, 16, 17, 40, 64, 65, 90)
NUMBERS = {"masked": MASKED, "causal": CAUSAL}


def engine(attention: str = "relu") -> TorchEngine:
    """A network whose states differ from site to site, as those of a trained one do."""
    made = Network(small_config(attention=attention)).eval()
    for parameter in made.parameters():
        if parameter.dim() == 2:
            parameter.data *= 4
    return TorchEngine(made)


def records(lengths: tuple[int, ...] = LENGTHS) -> list[io.Record]:
    rng = np.random.default_rng(3)
    return [io.Record(i, f"r{i}", "", rng.integers(3, 23, n).astype(np.uint8), 0, "", 0) for i, n in enumerate(lengths)]


def embedded(model: Engine, given: list[io.Record], mode: str, **options: object) -> list[Embedded]:
    batches = embed_batches(model, given, EmbedOptions(**options), mode)  # type: ignore[arg-type]
    return [row for _, rows in batches for row in rows]


def by_hand(model: TorchEngine, record: io.Record, mode: str, layer: int) -> dict[str, np.ndarray]:
    tokens = np.array([BOS, *record.tokens, EOS], np.uint8)
    states = model.hidden(tokens, np.array([0, len(tokens)]), NUMBERS[mode], layer).astype(np.float64)
    query = states[0] if mode == "masked" else states[len(tokens) - 1]
    residues = [states[i + 1] for i in range(len(record.tokens))]
    cosines = [float(h @ query / np.linalg.norm(h) / np.linalg.norm(query)) for h in residues]
    weights = [math.exp(math.sqrt(len(query)) * cosine) for cosine in cosines]
    return {
        "mean": sum(residues) / len(residues),
        "max": np.array([max(h[c] for h in residues) for c in range(len(query))]),
        "bos": states[0],
        "eos": states[len(tokens) - 1],
        "attention": sum(w * h for w, h in zip(weights, residues, strict=True)) / sum(weights),
        "residues": np.array(residues),
    }


@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
@pytest.mark.parametrize("mode", ["masked", "causal"])
@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_each_pool_is_that_of_the_states_of_the_sequence_alone(attention: str, mode: str, layer: int) -> None:
    model, given = engine(attention), records()
    pools = POOLS if mode == "masked" else tuple(name for name in POOLS if name != "bos")
    found = embedded(model, given, mode, pool=",".join(pools), layer=layer, batch_tokens=100)
    flat = embedded(model, given, mode, per_residue=True, layer=layer, batch_tokens=100)
    for record, row, residues in zip(given, found, flat, strict=True):
        wanted = by_hand(model, record, mode, layer)
        assert (row.n, row.id, row.length) == (record.n, record.id, len(record))
        for name, array in [*zip(pools, row.arrays, strict=True), ("residues", residues.arrays[0])]:
            scale = np.abs(wanted[name]).max()
            np.testing.assert_allclose(array, wanted[name], atol=3e-5 * scale, rtol=0, err_msg=name)


@pytest.mark.parametrize("block", [1, 7, 89, 90])
def test_an_attention_in_blocks_is_that_of_the_whole(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    states = np.random.default_rng(0).normal(1, 2, (92, 16)).astype(np.float32)
    whole = vectors.pooled(states, "attention", "masked")
    monkeypatch.setattr(vectors, "_BLOCK", block)
    np.testing.assert_allclose(vectors.pooled(states, "attention", "masked"), whole, rtol=1e-12)


@pytest.mark.parametrize("mode", ["masked", "causal"])
def test_vectors_do_not_depend_on_batch_mates_or_order(mode: str) -> None:
    model, given = engine(), records()
    alone = {row.id: row.arrays[0] for row in embedded(model, given, mode, deterministic=True)}
    for batch_tokens, order in ((1, 1), (70, -1), (10_000, 1)):
        for row in embedded(model, given[::order], mode, batch_tokens=batch_tokens):
            np.testing.assert_allclose(row.arrays[0], alone[row.id], atol=3e-5 * np.abs(alone[row.id]).max(), rtol=0)
    for row in embedded(model, given[::-1], mode, deterministic=True, batch_tokens=77):
        assert row.arrays[0].tobytes() == alone[row.id].tobytes()


@pytest.mark.parametrize("mode", ["masked", "causal"])
def test_vectors_of_the_native_engine_are_those_of_torch(mode: str, runs: dict[str, Path]) -> None:
    native, torch = (load_run(runs["both"], engine=name).engine for name in ("native", "torch"))
    assert (native.name, torch.name) == ("native", "torch")
    pools = ",".join(name for name in POOLS if mode == "masked" or name != "bos")
    ours, theirs = (embedded(each, records(), mode, pool=pools, layer=1) for each in (native, torch))
    for row, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.stack(row.arrays), np.stack(other.arrays), atol=1e-4)


@pytest.mark.parametrize("mode", ["masked", "causal"])
def test_a_network_in_rust_pools_its_states_as_numpy_does(mode: str, runs: dict[str, Path]) -> None:
    model = load_run(runs["both"]).engine
    given = [*records(), io.Record(99, "empty", "", np.empty(0, np.uint8), 0, "", 0)]
    pools = tuple(name for name in POOLS if mode == "masked" or name != "bos")
    for layer in (-1, 0, 1):
        states = hidden_states(model, [record.tokens for record in given], mode, layer)
        found = embedded(model, given, mode, pool=",".join(pools), layer=layer)
        for row, of_sequence in zip(found, states, strict=True):
            for name, array in zip(pools, row.arrays, strict=True):
                wanted = vectors.pooled(of_sequence, name, mode).astype(np.float32)
                if name == "attention":
                    np.testing.assert_allclose(array, wanted, rtol=1e-6)
                else:
                    np.testing.assert_array_equal(array, wanted)


def test_a_long_sequence_is_pooled_chunk_after_chunk(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, (record,) = load_run(runs["both"]).engine, records((500,))
    whole = embedded(model, [record], "causal", pool="max,mean,eos,attention", layer=1)[0].arrays
    for chunk in (501, 251, 97):
        monkeypatch.setattr(inference, "CHUNK", chunk)
        for pools in (("max", "mean", "eos"), ("max", "mean", "eos", "attention")):
            found = embedded(model, [record], "causal", pool=",".join(pools), layer=1)[0].arrays
            np.testing.assert_allclose(np.stack(found), np.stack(whole[: len(pools)]), atol=3e-5)


def test_a_pool_of_what_is_not_read_is_refused(runs: dict[str, Path]) -> None:
    network = load_run(runs["both"]).engine.network
    for pool, message in (
        (Pool(1, 0, 1, "mean"), "pools name sequence 1 of 1"),
        (Pool(0, 0, 4, "max"), "pools hold tokens 0 to 4 of a sequence of 3"),
        (Pool(0, 0, 3, "attention", 3), "pools name token 3"),
        (Pool(0, -1, 3, "mean"), "pools hold .*-1"),
        (Pool(0, 0, 3, "median"), "kind of a pool is 'median'; use mean, max, attention"),
    ):
        with pytest.raises(ConfigError, match=message):
            network.pooled(np.array([0, 5, 2]), np.array([0, 3]), False, [pool])


@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
def test_chunks_of_a_long_sequence_change_only_its_rounding(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (record,) = engine(attention), records((500,))
    calls = []
    whole = {layer: hidden_states(model, [record.tokens], "causal", layer)[0] for layer in (-1, 1)}
    monkeypatch.setattr(inference, "CHUNK", 97)
    monkeypatch.setattr(inference, "EXACT_CHUNK", 97)
    for layer, states in whole.items():
        chunked = hidden_states(model, [record.tokens], "causal", layer, calls.append)[0]
        np.testing.assert_allclose(chunked, states, atol=3e-5 * np.abs(states).max(), rtol=0)
    assert calls == [97, 97, 97, 97, 97, 17] * 2


def test_a_mode_layer_or_pool_that_the_model_lacks_is_refused_with_what_it_has() -> None:
    masked, causal, both = (small_config(objective=name) for name in ("masked", "causal", "both"))
    assert choose_mode(masked, EmbedOptions()) == choose_mode(both, EmbedOptions()) == "masked"
    assert choose_mode(causal, EmbedOptions()) == choose_mode(both, EmbedOptions(mode="causal")) == "causal"
    for config, options, message in (
        (masked, {"mode": "causal"}, "mode='masked'"),
        (causal, {"mode": "masked"}, "mode='causal'"),
        (causal, {"pool": "mean,bos"}, "pool='eos'"),
        (both, {"layer": 3}, "layer is 3; this model has 2 blocks"),
    ):
        with pytest.raises(ConfigError, match=message):
            choose_mode(config, EmbedOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "median"}, "'median' is unknown; choose of mean, max"),
        ({"pool": "mean,mean"}, "named twice"),
        ({"pool": ""}, "'' is unknown"),
        ({"pool": "mean", "per_residue": True}, "exclude each other"),
        ({"layer": -2}, "layer is -2"),
        ({"stored_type": "f64"}, "f32, f16"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbedOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2", "1/2/3", "01/2"])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="write 2/8 for the second of eight"):
        EmbedOutput(out=Path("x.npz"), shard=text)


def test_a_number_that_the_type_cannot_hold_is_an_error_and_not_infinite() -> None:
    model = engine()
    model.network.embedding.weight.data *= 1e6
    with pytest.raises(DataError, match=r"record 0 \('r0'\) has a number that f16 cannot hold; store it as f32"):
        embedded(model, records(), "masked", layer=0, stored_type="f16")
    assert np.isfinite(embedded(model, records(), "masked", layer=0)[0].arrays[0]).all()


@pytest.fixture(scope="module")
def model(runs: dict[str, Path]) -> lm.Model:
    return lm.load(runs["both"])


def test_python_embeds_every_kind_of_record_in_its_order(model: lm.Model, tmp_path: Path) -> None:
    sequences = {"a": "MKVAC", "b": "", "c": "MKBXWW"}
    path = write_fasta(tmp_path / "x.fasta", sequences)
    found = model.embed(["MKVAC", path, ("a", "MKVAC"), SeqRecord(Seq("MKVAC"), id="a")])
    assert found.ids == ["0", "a", "b", "c", "a", "a"]
    assert found.n.tolist() == list(range(6))
    assert found.lengths.tolist() == [5, 5, 0, 6, 5, 5]
    assert found.vectors.shape == (6, 16)
    assert found.vectors.dtype == np.float32
    for i in (1, 4, 5):
        np.testing.assert_allclose(found[i], found[0], atol=1e-5)
    # Nothing to take a mean of; the token before the residues is there all the same.
    assert np.isnan(found[2]).all()
    assert np.isfinite(model.embed("", pool="bos").vectors).all()
    assert repr(found) == "Embeddings of 6 sequences: mean [6, 16]"
    assert len(model.embed([])) == 0
    assert model.embed([], per_residue=True).vectors.shape == (0, 16)


def test_python_gives_residues_as_one_array_with_offsets(model: lm.Model) -> None:
    found = model.embed(["MKVAC", "", "WW"], per_residue=True, dtype="f16")
    assert found.offsets is not None
    assert found.offsets.tolist() == [0, 5, 5, 7]
    assert found.vectors.shape == (7, 16)
    assert found.vectors.dtype == np.float16
    assert [len(found[i]) for i in (0, 1, 2, -1)] == [5, 0, 2, 2]
    np.testing.assert_array_equal(found[2], found.vectors[5:])
    frame = found.to_pandas()
    assert list(frame.columns[:4]) == ["n", "id", "position", "0"]
    assert frame["position"].tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert frame["id"].tolist() == ["0"] * 5 + ["2"] * 2


def test_several_pools_are_several_arrays(model: lm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    found = model.embed(["MKVAC", "MW"], pool="max,mean")
    assert list(found.arrays) == ["max", "mean"]
    with pytest.raises(ConfigError, match="take one of arrays: max, mean"):
        _ = found.vectors
    frame = found.to_pandas()
    assert list(frame.columns) == ["n", "id", "length", *(f"{pool}_{i}" for pool in ("max", "mean") for i in range(16))]
    np.testing.assert_array_equal(frame["mean_3"], found.arrays["mean"][:, 3])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="pip install pandas"):
        found.to_pandas()


def test_rejects_and_warnings_reach_the_caller(model: lm.Model, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fasta", {"good": "MKV", "bad": "MK1V"})
    with pytest.warns(UserWarning, match="rejected 1 of 2 records; the result's `rejected` lists them"):
        found = model.embed(path, residues="skip")
    assert [(reject.n, reject.id) for reject in found.rejected] == [(1, "bad")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.embed("MKV").ids == ["0"]
