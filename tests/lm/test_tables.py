"""Sequences from tables, in every command and in Python: what the same sequences give as FASTA."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas
import pytest
from commands import error_line, in_process, protperf, table
from conftest import LETTERS

from protperf import lm
from protperf.lm.training import checkpoint

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
    assert error_line(result) == (
        f"{csv}:1:1: no column 'sequence'; the first row of the table names: mutant, seq, DMS_score"
    )
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
