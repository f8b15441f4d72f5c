"""Sequences from tables, in every command and in Python: what the same sequences give as FASTA."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas
import pytest
from commands import environment, error_line, in_process, protperf, table
from conftest import LETTERS

from protperf import lm
from protperf.errors import ConfigError, DtypeError
from protperf.lm.scoring.row import ScoreRow
from protperf.lm.storage import checkpoint
from protperf.lm.tables.formats import Encoder
from protperf.lm.tables.sink import FileSink

SEQUENCES = {f"A{i}G": LETTERS[i:] + LETTERS[: i + 3] for i in range(12)}


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "x.fasta"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in SEQUENCES.items()))
    return path


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    frame = pandas.DataFrame({"mutant": SEQUENCES.keys(), "seq": SEQUENCES.values(), "DMS_score": 0.5})
    frame.to_csv(tmp_path / "x.csv", index=False)
    return tmp_path / "x.csv"


@pytest.fixture
def tsv(csv: Path, tmp_path: Path) -> Path:
    (tmp_path / "x.tsv.gz").write_bytes(gzip.compress(csv.read_bytes().replace(b",", b"\t")))
    return tmp_path / "x.tsv.gz"


def test_a_table_is_scored_as_the_same_sequences_in_fasta(
    runs: dict[str, Path], fasta: Path, csv: Path, tsv: Path
) -> None:
    expected = in_process("score", runs["both"], fasta).stdout
    columns = ["--seq-col", "seq", "--id-col", "mutant"]
    for path in (csv, tsv):
        result = in_process("score", runs["both"], path, *columns)
        assert (result.returncode, result.stdout) == (0, expected)
    assert protperf("score", runs["both"], "-", *columns, stdin=tsv.read_bytes()).stdout == expected
    numbered = table(in_process("score", runs["both"], csv, "--seq-col", "seq").stdout)
    assert [row["id"] for row in numbered] == [row["n"] for row in numbered] == [str(i) for i in range(12)]


def test_a_table_is_trained_on_as_the_same_sequences_in_fasta(fasta: Path, csv: Path, tmp_path: Path) -> None:
    common = ["--steps", 1, "--batch-tokens", 64, "-q", "--validate"]
    assert in_process("train", "--fasta", fasta, "-o", tmp_path / "a", *common, fasta).returncode == 0
    words = ["train", "--fasta", csv, "--seq-col", "seq", "-o", tmp_path / "b"]
    assert in_process(*words, *common, csv).returncode == 0
    facts = [checkpoint.find(tmp_path / run).manifest for run in "ab"]
    for name in ("data_sha256", "validation_sha256"):
        assert facts[0][name] == facts[1][name]
    weights = [(tmp_path / run / "step-1" / "model.safetensors").read_bytes() for run in "ab"]
    assert weights[0] == weights[1]
    words[-1] = tmp_path / "b"
    assert in_process(*words, "--resume", "--steps", 2, "--validate", csv).returncode == 0


def test_python_takes_tables_by_path(runs: dict[str, Path], fasta: Path, csv: Path, tmp_path: Path) -> None:
    model = lm.load(runs["both"])
    expected = [(row.id, row.ll) for row in model.score(fasta)]
    for records in (csv, str(csv), [csv]):
        found = model.score(records, seq_col="seq", id_col="mutant")
        assert [(row.id, row.ll) for row in found] == expected
    run = lm.train(csv, tmp_path / "run", seq_col="seq", steps=1, batch_tokens=64)
    assert run.step == 1


@pytest.mark.parametrize("command", ["score", "train"])
def test_a_table_without_the_column_names_those_it_has(
    command: str, runs: dict[str, Path], csv: Path, tmp_path: Path
) -> None:
    train = ["train", "--fasta", csv, "-o", tmp_path / "r", "--steps", 1]
    words = train if command == "train" else ["score", runs["both"], csv]
    result = in_process(*words, "--seq-col", "sequence")
    assert result.returncode == 1
    said = "the first row must name the columns, and it names 'mutant', 'seq', 'DMS_score'"
    assert error_line(result) == f"{csv}:1:1: no column 'sequence'; {said}"
    result = in_process(*words)
    assert result.returncode == 1
    assert error_line(result).startswith(f"{csv}:1:1: not FASTA: this looks like a CSV or TSV table; name its column")
    assert not (tmp_path / "r").exists()


def test_a_resumed_table_of_other_columns_is_refused(runs: dict[str, Path], csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.tsv"
    words = ["score", "-q", runs["both"], csv, "-o", out, "--seq-col", "seq"]
    assert in_process(*words, "--id-col", "mutant").returncode == 0
    facts = json.loads(out.with_name("scores.tsv.meta.json").read_text())
    assert (facts["seq_col"], facts["id_col"], facts["format"]) == ("seq", "mutant", "tsv")
    added_at_the_end = ("command", "model", "input", "rejected", "records", "rows", "bytes", "records_sha256")
    started = {name: value for name, value in facts.items() if name not in added_at_the_end}
    FileSink(out, Encoder(ScoreRow, "tsv"), started, resume=False).interrupt()
    result = in_process(*words, "--resume")
    assert result.returncode == 2
    assert "was started with another id col" in error_line(result)
    assert in_process(*words, "--resume", "--id-col", "mutant").returncode == 0


def test_places_and_ids_go_on_over_tables_and_other_records(runs: dict[str, Path], tmp_path: Path) -> None:
    paths = [tmp_path / "a.csv", tmp_path / "b.tsv"]
    for path in paths:
        path.write_text("seq\nMKV\nACD\n")
    model = lm.load(runs["both"])
    expected = [(i, str(i)) for i in range(4)]
    assert [(row.n, row.id) for row in model.score(paths, seq_col="seq")] == expected
    message = table(in_process("score", runs["both"], *paths, "--seq-col", "seq").stdout)
    assert [(int(row["n"]), row["id"]) for row in message] == expected


def test_what_is_not_a_table_file_is_refused_with_what_to_give(runs: dict[str, Path]) -> None:
    model = lm.load(runs["both"])
    frame = pandas.DataFrame({"id": ["a"], "sequence": ["MKV"]})
    with pytest.raises(DtypeError, match=r"give its columns as pairs, such as zip\(table.id, table.sequence\)"):
        model.score(frame)
    assert [row.id for row in model.score(zip(frame.id, frame.sequence, strict=True))] == ["a"]
    with pytest.raises(ConfigError, match="seq_col is for files, but record 0 is a str"):
        model.score(["MKV"], seq_col="seq")
    with pytest.raises(ConfigError, match="seq_col is missing"):
        model.score(["MKV"], id_col="id")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["--seq-col", "seq", "--id-col", "seq"], "--id-col and --seq-col are both 'seq'"),
        (["--seq-col", "\udcff"], "which is not UTF-8"),
    ],
)
def test_names_of_columns_that_cannot_be_are_refused(
    columns: list[str], message: str, runs: dict[str, Path], csv: Path
) -> None:
    result = in_process("score", runs["both"], csv, *columns)
    assert result.returncode == 2
    assert message in error_line(result)


def test_an_empty_table_of_scores_has_the_types_of_any_other(runs: dict[str, Path]) -> None:
    model = lm.load(runs["both"])
    numbers = ["n", "len", "scored", "ll", "ll_per_residue", "ppl"]
    empty, full = model.score([]), model.score(["MKV"])
    assert list(empty.to_pandas()[numbers].dtypes) == list(full.to_pandas()[numbers].dtypes)
    assert empty.to_polars()[numbers].schema == full.to_polars()[numbers].schema


def test_a_pyarrow_that_cannot_be_imported_is_reported_before_any_work(
    runs: dict[str, Path], csv: Path, tmp_path: Path
) -> None:
    (tmp_path / "pyarrow").mkdir()
    (tmp_path / "pyarrow" / "__init__.py").write_text("raise ImportError('wrong libc')")
    words = ["score", runs["both"], csv, "--seq-col", "seq", "-o", tmp_path / "out.parquet"]
    result = protperf(*words, env=environment(PYTHONPATH=str(tmp_path)))
    assert result.returncode == 4
    assert error_line(result) == "format parquet needs pyarrow (wrong libc); install it with pip install pyarrow"
    assert not list(tmp_path.glob("out*"))
