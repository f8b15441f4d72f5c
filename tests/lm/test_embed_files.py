"""Files of vectors: each format holds the same arrays; interrupted, sharded and repeated runs give the same bytes."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import random
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import error_line, in_process, protperf, write_fasta
from conftest import LETTERS
from test_score_resume import in_child, new
from tracer import KILL, Trace, trace

import protperf.lm as lm
from protperf.lm.cli import main
from protperf.lm.embedding import partial_file
from protperf.lm.tables import sink

FORMATS = ("npz", "parquet", "h5", "safetensors")
Embed = Callable[..., dict[str, object]]

IDS = ["same", "same", "", "nan", "../../x", "é\u4e2d", "x" * 300, 'a"b,c']


def read(path: Path) -> dict[str, Any]:
    """All arrays of a file, and its metadata, whichever its format."""
    kind = path.suffix[1:]
    if kind == "npz":
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, Any] = dict(file)
        return {**found, "id": found["id"].tolist(), "protperf": json.loads(str(found["protperf"]))}
    if kind == "safetensors":
        from safetensors import safe_open
        from safetensors.numpy import load_file

        found = load_file(path)
        data, borders = found.pop("id_bytes").tobytes(), found.pop("id_offsets").tolist()
        found["id"] = [data[a:b].decode() for a, b in itertools.pairwise(borders)]
        with safe_open(path, "numpy") as opened:
            return {**found, "protperf": json.loads(opened.metadata()["protperf"])}
    if kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path) as file:
            found = {name: file[name][:] for name in file}
            metadata = json.loads(file.attrs["protperf"])
        return {**found, "id": [name.decode() for name in found["id"]], "protperf": metadata}
    return read_parquet(path)


def read_parquet(path: Path) -> dict[str, Any]:
    from pyarrow import parquet

    table = parquet.read_table(path)
    found: dict[str, Any] = {"id": table["id"].to_pylist()}
    for name in table.schema.names:
        column = table[name].combine_chunks()
        if name in ("n", "length"):
            found[name] = column.to_numpy()
        elif name == "residues":
            found["offsets"] = column.offsets.to_numpy() - column.offsets[0].as_py()
            found[name] = column.flatten().flatten().to_numpy().reshape(-1, column.type.value_type.list_size)
        elif name != "id":
            found[name] = column.flatten().to_numpy().reshape(-1, column.type.list_size)
    return {**found, "protperf": json.loads(table.schema.metadata[b"protperf"])}


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Records with ids that are odd, repeated or missing, and one without residues."""
    rng = random.Random(3)
    lines = [
        f">{name}{' text' if name else ''}\n{''.join(rng.choices(LETTERS, k=7 * i))}\n" for i, name in enumerate(IDS)
    ]
    (tmp_path / "odd.fa").write_text("".join(lines), encoding="utf-8")
    return tmp_path / "odd.fa"


@pytest.mark.parametrize("words", [["--pool", "mean,max,attention"], ["--per-residue"]], ids=" ".join)
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_every_format_holds_the_same_arrays(
    words: list[str], dtype: str, odd: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("h5py")
    asked = {"per_residue": True} if "--per-residue" in words else {"pool": words[1]}
    wanted = lm.load(runs["both"]).embed(odd, dtype=dtype, deterministic=True, **asked)
    for name in FORMATS:
        out = tmp_path / f"x.{name}"
        result = in_process("embed", runs["both"], odd, "-o", out, *words, "--dtype", dtype, "--deterministic", "-q")
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b""), result.stderr
        found = read(out)
        assert found.pop("id") == IDS == wanted.ids
        metadata = found.pop("protperf")
        np.testing.assert_array_equal(found.pop("n"), wanted.n)
        np.testing.assert_array_equal(found.pop("length"), wanted.lengths)
        if wanted.offsets is not None:
            np.testing.assert_array_equal(found.pop("offsets"), wanted.offsets)
        assert set(found) == set(wanted.arrays)
        for key, array in wanted.arrays.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(found[key], array)
        assert metadata["model_sha256"] == json.loads(Path(f"{out}.meta.json").read_text())["model_sha256"]
        assert metadata["layer"] == -1
        assert (metadata["mode"], metadata["stored_type"]) == ("masked", dtype)
        assert [*tmp_path.glob("*.part*"), *tmp_path.glob(".tmp*")] == []


@pytest.mark.parametrize("name", FORMATS)
def test_arrays_larger_than_a_piece_or_a_group_are_whole(
    name: str, runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from protperf.lm.embedding import formats

    monkeypatch.setattr(partial_file, "_PIECE_BYTES", 200)
    monkeypatch.setattr(formats, "_GROUP_NUMBERS", 500)
    rng = random.Random(1)
    path = write_fasta(
        tmp_path / "x.fa", {f"p{i}": "".join(rng.choices(LETTERS, k=rng.randint(0, 60))) for i in range(30)}
    )
    model = lm.load(runs["both"])
    for asked in ({"per_residue": True}, {"pool": "mean,max"}):
        model.embed_files(path, tmp_path / f"x.{name}", **asked)
        wanted, found = model.embed(path, **asked), read(tmp_path / f"x.{name}")
        assert found["id"] == wanted.ids
        for key, array in wanted.arrays.items():
            np.testing.assert_array_equal(found[key], array)


@pytest.mark.parametrize("name", FORMATS)
def test_no_records_are_arrays_without_rows(name: str, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "none.fa").write_text("")
    for words in ([], ["--per-residue"]):
        result = in_process("embed", runs["both"], tmp_path / "none.fa", "-o", tmp_path / f"x.{name}", *words)
        assert result.returncode == 0
        assert b"warning" in result.stderr
        found = read(tmp_path / f"x.{name}")
        assert found["id"] == []
        assert found["residues" if words else "mean"].shape == (0, 16)


def test_shards_together_are_the_whole(runs: dict[str, Path], fasta: Path, tmp_path: Path) -> None:
    model = lm.load(runs["both"])
    model.embed_files(fasta, tmp_path / "all.npz", deterministic=True)
    whole = read(tmp_path / "all.npz")
    for i in (1, 2, 3):
        model.embed_files(fasta, tmp_path / f"{i}.npz", deterministic=True, shard=f"{i}/3")
    parts = [read(tmp_path / f"{i}.npz") for i in (1, 2, 3)]
    assert [len(each["n"]) for each in parts] == [14, 13, 13]
    order = np.argsort(np.concatenate([each["n"] for each in parts]))
    for name in ("n", "length", "mean"):
        np.testing.assert_array_equal(np.concatenate([each[name] for each in parts])[order], whole[name])
    ids = [name for each in parts for name in each["id"]]
    assert [ids[i] for i in order] == whole["id"]


# -- Interruptions

MODULES = [f"protperf.lm.{name}" for name in ("cli.embed", "cli.progress", "embedding.job", "loading")]


@pytest.fixture
def embed(runs: dict[str, Path], tmp_path: Path) -> Embed:
    """Embeds twelve records in about eight batches into `folder/NAME`, with a journal after each batch."""
    rng = random.Random(3)
    proteins = {f"p{i}": "".join(rng.choices(LETTERS, k=rng.randint(5, 40))) for i in range(12)}
    path = write_fasta(tmp_path / "proteins.fa", proteins)

    def run(
        folder: Path, *words: str, name: str = "x.npz", fasta: Path = path, model: str = "both"
    ) -> dict[str, object]:
        sink.SYNC_S = 0.0
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                arguments = ["embed", "-q", "-j", "1", "--batch-tokens", "70", str(runs[model]), str(fasta)]
                code = main([*arguments, "-o", str(folder / name), *words])
            except SystemExit as error:
                code = int(error.code or 0)
        return {"code": code, "said": said.getvalue()}

    return run


def golden(embed: Embed, folder: Path, *words: str, name: str) -> tuple[bytes, Trace]:
    """The bytes of an undisturbed file, and the calls that it took."""
    # What would take seconds to load in each child.
    for module in (*MODULES, "pyarrow.parquet", "h5py"):
        with contextlib.suppress(ImportError):
            import_module(module)
    with contextlib.suppress(ImportError):
        # Its first array loads pandas.
        import_module("pyarrow").array([1])
    (new(folder) / name).write_bytes(b"older vectors")
    whole = trace(lambda: embed(folder, *words, name=name), folder)
    assert whole.report["result"] == {"code": 0, "said": ""}
    return (folder / name).read_bytes(), whole


def faults(embed: Embed, folder: Path, data: bytes, *words: str, name: str) -> list[str]:
    """What is wrong after an interruption was resumed: nothing should be."""
    found = []
    code = in_child(lambda: embed(folder, *words, "--resume", name=name))
    if code:
        found.append(f"--resume ended in {code}")
    elif (folder / name).read_bytes() != data:
        found.append("the file differs")
    elif sorted(os.listdir(folder)) != [name, f"{name}.meta.json"]:
        found.append(f"left {sorted(os.listdir(folder))}")
    return found


SOME = pytest.param(5, id="each-fifth")
EVERY = pytest.param(1, id="each", marks=pytest.mark.soak)


@pytest.mark.parametrize("words", [["--pool", "mean,eos"], ["--per-residue", "--dtype", "f16"]], ids=" ".join)
@pytest.mark.parametrize("stride", [SOME, EVERY])
def test_vectors_killed_at_any_call_are_continued_to_the_same_bytes(
    words: list[str], stride: int, embed: Embed, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    data, whole = golden(embed, folder, *words, name="x.npz")
    bad = []
    # The two ways together strike twice as many calls.
    first = stride // 2 if "--pool" in words else 0
    for at, call in list(enumerate(whole.calls, 1))[first::stride]:
        new(folder)
        (folder / "x.npz").write_bytes(b"older vectors")
        assert trace(lambda: embed(folder, *words), folder, at, KILL).killed
        if (folder / "x.npz").read_bytes() not in (b"older vectors", data):
            bad.append(f"{at} {call}: half a file stands under its name")
        bad += [f"{at} {call}: {text}" for text in faults(embed, folder, data, *words, name="x.npz")]
    print(f"N={len(whole.calls)} calls, {len(bad)} bad states")
    assert not bad
    assert len(whole.calls) > 60


@pytest.mark.parametrize(
    ("form", "stride"),
    # HDF5 writes in many small pieces.
    [("parquet", 1), ("safetensors", 1), ("h5", 5), pytest.param("h5", 1, marks=pytest.mark.soak)],
)
def test_a_file_struck_while_it_is_made_is_made_again_to_the_same_bytes(
    form: str, stride: int, embed: Embed, tmp_path: Path
) -> None:
    """Until its rows are complete it is as any other; from there on calls fail, or are the last."""
    if form == "h5":
        pytest.importorskip("h5py")
    name, folder = f"x.{form}", tmp_path / "struck"
    data, whole = golden(embed, folder, name=name)
    first = next(at for at, call in enumerate(whole.calls, 1) if str(call) == f"unlink .tmp-{name}")
    bad = []
    for at in range(first, len(whole.calls) + 1, stride):
        for action in (KILL, errno.ENOSPC) if at % 2 else (errno.ENOSPC,):
            new(folder)
            (folder / name).write_bytes(b"older vectors")
            struck = trace(lambda: embed(folder, name=name), folder, at, action)
            where = f"{at} {whole.calls[at - 1]}"
            if (folder / name).read_bytes() not in (b"older vectors", data):
                bad.append(f"{where}: half a file stands under its name")
            if action != KILL and struck.report["result"]["code"] not in (0, 3):
                bad.append(f"{where}: {struck.report['result']}")
            bad += [f"{where}: {text}" for text in faults(embed, folder, data, name=name)]
    assert not bad
    assert len(whole.calls) - first > 6


def test_vectors_of_something_else_are_not_continued(embed: Embed, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    _, whole = golden(embed, folder, name="x.npz")
    assert trace(lambda: embed(new(folder)), folder, len(whole.calls) // 2, KILL).killed
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = write_fasta(tmp_path / "other.fa", {"a": "MKV"})
    for words, given, what in (
        ([], {"fasta": other}, "another input sha256"),
        ([], {"model": "masked"}, "another model sha256"),
        (["--pool", "max"], {}, "another pool"),
        (["--layer", "1"], {}, "another layer"),
        (["--dtype", "f16"], {}, "another stored type"),
        (["--shard", "1/2"], {}, "another shard"),
    ):
        said = embed(folder, "--resume", *words, **given)
        assert said["code"] == 2
        assert what in str(said["said"])
    refused = embed(folder)
    assert "rows of an interrupted table; continue it with --resume, or start over with --force" in str(refused["said"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert embed(folder, "--force") == {"code": 0, "said": ""}


def test_a_finished_file_is_left_as_it_is(embed: Embed, tmp_path: Path) -> None:
    folder = new(tmp_path / "twice")
    assert embed(folder)["code"] == 0
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert embed(folder, "--resume")["code"] == 0
    assert "is a finished table of another pool" in str(embed(folder, "--resume", "--pool", "max")["said"])
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


# -- The command


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["embed", "RUN", "GOOD"], 2, "missing option --out"),
        (["embed", "RUN", "GOOD", "-o", "x.tsv"], 2, "--out x.tsv has no suffix of .parquet, .npz, .h5, .hdf5"),
        (
            ["embed", "RUN", "GOOD", "-o", "-", "--format", "npz"],
            2,
            "npz is written as a whole file; name one with --out",
        ),
        (["embed", "RUN", "GOOD", "-o", "/dev/null", "--format", "npz"], 2, "name one with --out"),
        (["embed", "RUN", "GOOD", "-o", "x.npz", "--pool", "median"], 2, "--pool: 'median' is unknown"),
        (["embed", "RUN", "GOOD", "-o", "x.npz", "--pool", "max", "--per-residue"], 2, "--pool and --per-residue"),
        (["embed", "RUN", "GOOD", "-o", "x.npz", "--layer", "9"], 2, "--layer is 9; this model has 2 blocks"),
        (["embed", "RUN", "GOOD", "-o", "x.npz", "--mode", "causal", "--pool", "bos"], 2, "use --pool eos"),
        (["embed", "CAUSAL", "GOOD", "-o", "x.npz", "--mode", "masked"], 2, "use --mode causal"),
        (["embed", "RUN", "GOOD", "-o", "x.npz", "--shard", "3/2"], 2, "--shard is '3/2'"),
        (["embed", "RUN", "GOOD", "-o", "GOOD", "--format", "npz"], 2, "input file"),
        (["embed", "RUN", "missing.fa", "-o", "x.npz"], 3, "missing.fa: "),
        (["embed", "RUN", "GOOD", "-o", "none/x.npz"], 3, "none: there is no such directory"),
        (["embed", "missing-run", "GOOD", "-o", "x.npz"], 3, "missing-run: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_plain_line(
    words: list[str], code: int, message: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    good = write_fasta(tmp_path / "good.fa", {"a": "MKV"})
    named = {"RUN": str(runs["both"]), "CAUSAL": str(runs["causal"]), "GOOD": str(good)}
    result = in_process(*[named.get(word, word) for word in words], cwd=tmp_path)
    assert message in error_line(result)
    assert result.returncode == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.fa"]


@pytest.mark.parametrize(("form", "package"), [("h5", "h5py"), ("parquet", "pyarrow")])
def test_a_package_that_is_missing_is_named_before_any_work(
    form: str, package: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    good = write_fasta(tmp_path / "good.fa", {"a": "MKV"})
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("raise ImportError('not here')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = protperf("embed", runs["both"], good, "-o", tmp_path / f"x.{form}", env=env)
    assert result.returncode == 4
    assert f"format {form} needs {package} (not here); install it with pip install {package}" in error_line(result)


def test_records_that_were_left_out_end_in_5(runs: dict[str, Path], tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKV", "b": "MK1", "c": "MKW"})
    words = ["embed", runs["both"], path, "-o", tmp_path / "x.npz", "--residues", "skip"]
    assert in_process(*words).returncode == 5
    assert in_process(*words, "--allow-rejects").returncode == 0
    assert read(tmp_path / "x.npz")["n"].tolist() == [0, 2]
