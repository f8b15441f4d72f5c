"""`score --carry`: columns of the input stand next to the scores of their own rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import error_line, in_process, table

ROWS = [
    ("a", "ACDEF", "0.50", "x, y"),
    ("b", "AC-DE", "1", ""),
    ("c", "MKV", "-2e3", "  two  words "),
    ("d", "", "", "é"),
]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    path = tmp_path / "in.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("id", "seq", "value", "note"), *ROWS])
    return path


def scored(*words: object) -> list[dict[str, str]]:
    result = in_process("score", *words, "--allow-rejects", "-q")
    assert result.returncode == 0, result.stderr
    return table(result.stdout) if result.stdout else []


def test_cells_stay_as_they_are_in_any_shape_of_table(measured: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    words = [runs["causal"], measured, "--seq-col", "seq", "--carry", "value", "--carry", "note"]
    rows = scored(*words)
    assert [(row["id"], row["value"], row["note"]) for row in rows] == [(i, v, n) for i, _, v, n in ROWS]
    plain = scored(runs["causal"], measured, "--seq-col", "seq")
    assert [{k: v for k, v in row.items() if k not in ("value", "note")} for row in rows] == plain
    # What is left out, and what another job takes, does not shift the cells of the others.
    kept = scored(*words, "--residues", "skip")
    assert [(row["id"], row["value"]) for row in kept] == [("a", "0.50"), ("c", "-2e3")]
    for part in ("1/2", "2/2"):
        scored(*words, "--deterministic", "--shard", part, "-o", tmp_path / f"{part[0]}.tsv")
    scored(*words, "--deterministic", "-o", tmp_path / "whole.tsv")
    shards = [tmp_path / "1.tsv", tmp_path / "2.tsv"]
    assert in_process("merge", *shards, "-o", tmp_path / "merged.tsv").returncode == 0
    assert (tmp_path / "merged.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    residues = scored(*words, "--per-residue")
    assert [row["value"] for row in residues] == ["0.50"] * 5 + ["1"] * 4 + ["-2e3"] * 3 + [""]
    out = tmp_path / "two.jsonl"
    twice = [runs["causal"], measured, measured, *words[2:], "-o", out]
    scored(*twice)
    assert [json.loads(line)["note"] for line in out.read_text().splitlines()] == [row[3] for row in ROWS] * 2
    whole = out.read_bytes()
    scored(*twice, "--resume")
    assert out.read_bytes() == whole
    assert "is a finished table of" in error_line(in_process("score", *twice[:-4], "-o", out, "--resume"))


def test_of_fasta_the_description_is_carried(runs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "in.fa"
    path.write_text(">a first OS=Homo sapiens\nACD\n>b\nMKV\n")
    rows = scored(runs["causal"], path, "--carry", "description")
    assert [row["description"] for row in rows] == ["first OS=Homo sapiens", ""]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["in.csv", "--seq-col", "seq", "--carry", "notes"], "no column 'notes'; did you mean note?"),
        (["in.csv", "--seq-col", "seq", "--carry", "id"], "--carry 'id' is a column of the scores as well"),
        (["in.csv", "--carry", "note"], "--carry is 'note', but FASTA has a description alone"),
        (["-", "--seq-col", "seq", "--carry", "note"], "which standard input cannot be"),
    ],
)
def test_what_cannot_be_carried_is_refused_before_the_work(
    words: list[str], message: str, measured: Path, runs: dict[str, Path]
) -> None:
    assert message in error_line(in_process("score", runs["causal"], *words, cwd=measured.parent))
