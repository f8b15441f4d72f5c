"""The Python interface: what a program may call a sequence is scored once, in its order, and left as it was."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from commands import in_process, protperf, table, write_fasta

import protperf.lm as lm
from protperf import Error, io
from protperf.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DtypeError,
    FastaError,
    MissingFileError,
    MissingPackageError,
)

SEQUENCES = {"a": "MKVAC", "b": "", "a2": "MKBXWW", "c": "mkv*"}


@pytest.fixture(scope="module")
def model(runs: dict[str, Path]) -> lm.Model:
    return lm.load(runs["both"])


def test_every_kind_of_record_gives_the_same_score(model: lm.Model, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fasta", SEQUENCES)
    want = model.score(path)
    assert [row.id for row in want] == list(SEQUENCES)
    biopython = [SeqRecord(Seq(text), id=name) for name, text in SEQUENCES.items()]
    for records in (str(path), SEQUENCES.items(), biopython, tuple(biopython), io.scan(path), [path]):
        assert repr(model.score(records).rows) == repr(want.rows)
    assert [repr(row.ll) for row in model.score(SEQUENCES.values())] == [repr(row.ll) for row in want]
    assert [row.id for row in model.score(SEQUENCES.values())] == ["0", "1", "2", "3"]
    assert [str(record.seq) for record in biopython] == list(SEQUENCES.values())
    for single in ("MKVAC", "MKVAC\n", [("a", "MKVAC")], biopython[0], next(io.scan(path))):
        assert [row.ll for row in model.score(single)] == [want.rows[0].ll]
    assert repr(lm.score(model, path).rows) == repr(want.rows)


def test_a_mixture_keeps_order_duplicates_and_places(model: lm.Model, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fasta", {"a": "MKVAC", "b": "MWC"})
    scored = model.score(["MKVAC", path, ("a", "MKVAC"), str(path), SeqRecord(Seq("MWC"), id="b"), *io.scan(path)])
    assert [row.n for row in scored] == list(range(9))
    assert [row.id for row in scored] == ["0", "a", "b", "a", "a", "b", "b", "a", "b"]
    assert len({row.ll for row in scored}) == 2


def test_an_iterator_is_read_once_and_no_further_than_needed(model: lm.Model) -> None:
    read = []

    def sequences() -> Iterator[str]:
        for i in range(50):
            read.append(i)
            yield "MKVAC" if i != 40 else "MK1V"

    with pytest.raises(FastaError, match=r"<record 40>:1:3: digit '1'"):
        model.score(sequences(), batch_tokens=7)
    assert read == list(range(41))


def test_text_is_a_path_by_its_look_and_not_by_what_lies_about(
    model: lm.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = model.score("MKV").rows
    write_fasta(tmp_path / "MKV", {"inside": "WWWW"})
    assert model.score("MKV").rows == before
    assert [row.id for row in model.score(Path("MKV"))] == ["inside"]
    assert [row.id for row in model.score("./MKV")] == ["inside"]
    for name in ("x.fa", "x.FASTA", "x.faa.gz", "MKV.zst"):
        with pytest.raises(MissingFileError, match=name):
            model.score(name)


def test_rejects_and_warnings_reach_the_caller(model: lm.Model, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fasta", {"good": "MKV", "bad": "MK1V", "dna": "ACGT" * 30})
    for records in (path, [("good", "MKV"), ("bad", "MK1V"), ("dna", "ACGT" * 30)]):
        with pytest.warns(UserWarning, match="rejected 2 of 3 records"):
            scored = model.score(records, residues="skip")
        assert [(row.n, row.id) for row in scored] == [(0, "good")]
        assert [(reject.n, reject.id) for reject in scored.rejected] == [(1, "bad"), (2, "dna")]
        assert "digit" in scored.rejected[0].reason
    with pytest.warns(UserWarning, match="nucleotides"):
        assert model.score(write_fasta(tmp_path / "dna.fasta", {"dna": "ACGT" * 30})).warnings
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.score([]).rows == []


@pytest.mark.parametrize(
    ("records", "kind", "message"),
    [
        (None, DtypeError, "NoneType"),
        (5, DtypeError, "int"),
        (b"MKV", DtypeError, "bytes"),
        ({"a": "MKV"}, DtypeError, r"items\(\)"),
        ([b"MKV"], DtypeError, "record 0 is a bytes"),
        (["MKV", ("a", "b", "c")], DtypeError, "record 1 is a tuple"),
        ([["a", "MKV"]], DtypeError, "record 0 is a list"),
        (
            ("MKV", "ACD"),
            DtypeError,
            r"an id and a sequence or two sequences; give \[\('MKV', 'ACD'\)\] for one record",
        ),
        ("MKV\nACD", DtypeError, "record 0 has line breaks, which may separate sequences or parts of one"),
        (["MKV", "MK\rV\n"], DtypeError, "record 1 has line breaks"),
        (["MKV", "MéV"], FastaError, "<record 1>:1:2: "),
        ([SeqRecord(Seq(None, length=5), id="x")], DataError, "record 0 has no residues"),
        ("none.fasta", MissingFileError, "none.fasta"),
    ],
    ids=str,
)
def test_what_is_not_a_sequence_is_refused_by_name(
    records: object, kind: type[Error], message: str, model: lm.Model
) -> None:
    with pytest.raises(kind, match=message) as caught:
        model.score(records)
    assert isinstance(caught.value, Error)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"method": "lll"}, "auto, ll, pll"),
        ({"residues": "loose"}, "map, strict, skip"),
        ({"batch_tokens": 0}, "at least 1"),
    ],
    ids=str,
)
def test_a_choice_that_does_not_exist_is_refused(choices: dict[str, object], message: str, model: lm.Model) -> None:
    with pytest.raises(ConfigError, match=message):
        model.score("MKV", **choices)


def test_load_refuses_what_is_not_there(tmp_path: Path, runs: dict[str, Path]) -> None:
    with pytest.raises(MissingFileError):
        lm.load(tmp_path / "none")
    with pytest.raises(ConfigError, match="device='wgpu' computes in float32; leave dtype"):
        lm.load(runs["both"], device="wgpu", dtype="float64")
    with pytest.raises(ConfigError):
        lm.load(runs["both"], device="quantum")


def test_a_table_gives_columns_and_names_the_package_it_lacks(model: lm.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = model.score(["MKV", "MW"])
    np.testing.assert_array_equal(scored.numpy("len"), [3, 2])
    assert scored.numpy("ll").dtype == np.float64
    with pytest.raises(ConfigError, match="ll_per_residue"):
        scored.numpy("score")
    for package in ("pandas", "polars"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingPackageError, match=f"pip install {package}") as caught:
            getattr(scored, f"to_{package}")()
        assert isinstance(caught.value, (Error, ImportError))


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_a_table_becomes_a_frame(package: str, model: lm.Model) -> None:
    frame = getattr(model.score(["MKV", "MW"]), f"to_{package}")()
    assert list(frame["len"]) == [3, 2]


def test_python_and_the_command_give_the_same_numbers(model: lm.Model, runs: dict[str, Path], fasta: Path) -> None:
    rows = table(protperf("score", "-q", runs["both"], fasta).stdout)
    assert [float(row["ll"]) for row in rows] == [row.ll for row in model.score(fasta)]


def test_training_from_python_leaves_a_run_that_scores(fasta: Path, tmp_path: Path) -> None:
    lines: list[dict[str, object]] = []
    trained = lm.train(str(fasta), tmp_path / "run", steps=2, batch_tokens=200, validate=0.2, report=lines.append)
    assert trained.step == 2
    assert any("loss" in line for line in lines)
    assert trained.score("MKV").rows == lm.load(tmp_path / "run").score("MKV").rows
    with pytest.raises(ConfigError, match="exactly one"):
        lm.train(fasta, tmp_path / "other", steps=2, epochs=1)
    assert not (tmp_path / "other").exists()


def test_training_from_python_says_what_the_command_says(
    fasta: Path, small_size: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"steps": 1, "batch_tokens": 200, "validate": 0.2, "size": str(small_size)}
    lm.train(fasta, tmp_path / "run", **given)
    said = capsys.readouterr().err
    words = ["--steps", 1, "--batch-tokens", 200, "--validate", 0.2, "--size", small_size]
    typed = in_process("train", "--fasta", fasta, "-o", tmp_path / "other", *words).stderr.decode()
    # Python names arguments without dashes.
    assert said == typed.replace(str(tmp_path / "other"), str(tmp_path / "run")).replace("--", "")
    assert "protperf: warning: " in said
    assert said.splitlines()[-1].startswith(f"protperf: {tmp_path / 'run'}: 1 steps; val_loss")
    lm.train(fasta, tmp_path / "quiet", quiet=True, **given)
    quiet = capsys.readouterr()
    assert quiet.out == ""
    assert [line for line in quiet.err.splitlines() if not line.startswith("protperf: warning: ")] == []


@pytest.mark.parametrize("name", ["proteins.dat", "in.mfa", "x.fastq", "scores.parquet"])
def test_what_ends_like_a_file_is_not_a_protein(name: str, runs: dict[str, Path]) -> None:
    with pytest.raises(MissingFileError, match=name):
        lm.load(runs["both"]).score(name)


def test_a_model_and_a_table_show_what_they_are(runs: dict[str, Path]) -> None:
    model = lm.load(runs["both"])
    assert repr(model) == f"Model('{runs['both']}/step-2', attention='relu', objective='both')"
    table = model.score(["MKV", "ACD"])
    assert table[1].id == "1"
    assert "load" in dir(lm)


def test_an_error_of_contents_shows_no_number_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        lm.load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: holds no checkpoint; train one with protperf train"
