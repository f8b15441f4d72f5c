"""`--rejects`: every record that is left out has a row that says where it stands and why."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import error_line, in_process

ODD = ">good\nACDEFGHIKL\n>gap here\nAC-DE\n>fine\nMKVLA\n>digit\nACD\nE5F\n"
FIRST, SECOND = ("gap", 4, 3, 1), ("digit", 9, 2, 3)
"""Id, line, column and place of the two that are left out."""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    path = tmp_path / "odd.fa"
    path.write_text(ODD * 2)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


def expected(path: Path) -> list[tuple[str, str, int, int, int]]:
    both = [
        (name, line + shift, column, n + 4 * (shift > 0))
        for shift in (0, 9)
        for name, line, column, n in (FIRST, SECOND)
    ]
    return [(str(path), name, line, column, n) for name, line, column, n in both]


def found(path: Path) -> list[tuple[str, str, int, int, int]]:
    return [(r["file"], r["id"], int(r["line"]), int(r["column"]), int(r["n"])) for r in rows(path)]


@pytest.mark.parametrize("command", ["score", "embed", "eval"])
def test_each_record_that_is_left_out_has_a_row(command: str, odd: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    out = ["-o", tmp_path / "out.npz"] if command == "embed" else ["-o", tmp_path / "out.tsv"]
    words = [command, runs["causal"], odd, "--residues", "skip", "--rejects", tmp_path / "left.tsv", *out, "-q"]
    assert in_process(*words).returncode == 5
    assert found(tmp_path / "left.tsv") == expected(odd)
    assert all("'-'" in row["reason"] or "'5'" in row["reason"] for row in rows(tmp_path / "left.tsv"))


def test_a_training_lists_those_of_both_its_files(odd: Path, fasta: Path, small_size: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--fasta",
        fasta,
        odd,
        "-o",
        tmp_path / "run",
        "--size",
        small_size,
        "--steps",
        1,
        "--validate",
        odd,
    ]
    result = in_process(*words, "--residues", "skip", "--rejects", tmp_path / "left.csv", "-q")
    assert result.returncode == 5, result.stderr
    # Among the proteins of `fasta` some have B, which is left out too.
    listed = [row for row in found(tmp_path / "left.csv") if row[0] == str(odd)]
    assert [row[:4] for row in listed] == [row[:4] for row in expected(odd) * 2]
    assert len(found(tmp_path / "left.csv")) > len(listed)


def test_what_looks_at_sets_lists_them_too(odd: Path, tmp_path: Path) -> None:
    for action, more in (("stats", []), ("build", ["-o", tmp_path / "x.tokens"]), ("split", ["-o", tmp_path / "s"])):
        words = ["data", action, odd, "--residues", "skip", "--rejects", tmp_path / "left.tsv", *more, "--by", "random"]
        result = in_process(*words, "--fraction", ".5", "--fraction", ".5")
        assert result.returncode == 0, result.stderr
        assert found(tmp_path / "left.tsv") == expected(odd)
        (tmp_path / "left.tsv").unlink()
    words = ["data", "check", odd, odd, "--residues", "skip", "--rejects", tmp_path / "left.tsv"]
    assert in_process(*words).returncode == 0
    assert found(tmp_path / "left.tsv") == expected(odd) * 2


def test_a_list_may_be_empty_or_lines_of_json(odd: Path, fasta: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    clean = tmp_path / "clean.fa"
    clean.write_text(">a\nACD\n")
    start = ["score", runs["causal"]]
    assert in_process(*start, clean, "--residues", "skip", "--rejects", tmp_path / "none.csv").returncode == 0
    assert (tmp_path / "none.csv").read_text() == "file,line,column,n,id,reason\n"
    words = [odd, "--residues", "skip", "--rejects", tmp_path / "left.jsonl", "--allow-rejects"]
    assert in_process(*start, *words).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "left.jsonl").read_text().splitlines()]
    assert [(one["id"], one["n"]) for one in lines] == [("gap", 1), ("digit", 3), ("gap", 5), ("digit", 7)]


def test_a_finished_table_that_is_resumed_still_has_its_list(odd: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["score", runs["causal"], odd, "--residues", "skip", "-o", tmp_path / "out.tsv", "--allow-rejects"]
    assert in_process(*words).returncode == 0
    assert in_process(*words, "--resume", "--rejects", tmp_path / "left.tsv").returncode == 0
    assert found(tmp_path / "left.tsv") == expected(odd)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd.fa", "--rejects is "),
        ("nowhere/left.tsv", "no such directory"),
        ("out.tsv", "would overwrite another file of this command"),
    ],
)
def test_a_list_that_cannot_be_is_refused(
    name: str, message: str, odd: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    words = [
        "score",
        runs["causal"],
        odd,
        "--residues",
        "skip",
        "-o",
        tmp_path / "out.tsv",
        "--rejects",
        tmp_path / name,
    ]
    assert message in error_line(in_process(*words))
    assert odd.read_text() == ODD * 2
