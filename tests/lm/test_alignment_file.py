"""Alignments as files have them: which columns are read, what is left out, and what is refused with its place."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from protperf.errors import DataError, MissingFileError
from protperf.lm.alignment.alignment import GAP, LETTERS, read_alignment

WANTED = ["MKV", "M-L", "-KI"]


def rows_of(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return letters(read_alignment(path).codes)


def letters(codes: np.ndarray) -> list[str]:
    assert codes.dtype == np.uint8
    assert codes.flags.c_contiguous
    return ["".join((LETTERS + "-")[code] for code in row) for row in codes]


@pytest.mark.parametrize(
    "text",
    [
        ">q\nMKV\n>a\nM-L\n>b\n-KI\n",
        ">q/24-26 first\r\nM\r\nKV\r\n>a\r\nM-\r\nL\r\n\r\n>b\r\n-KI",
        ">q\nMKaV\n>a\nM-.L\n>b\n-KgI\n",
        ">q\nMKV\n>a\nM-aceL\n>b\nwyw-KI\n",
        "#A3M#\n>ss_pred\nCHH\n>ss_conf\n899\n>q\nMKV\n>a\nM-L\n>b\n-KI\n",
        "#59\t1\n>q\nMKV\n>a\nM-L\n>b\n-KI\n",
        ">q\nMK-V\n>a\nM-AL\n>b\n-KGI\n",
        ">q\nMKV\n>a\nM.L\n>b\n.KI\n",
        "# STOCKHOLM 1.0\n#=GF ID fam\n\nq  MK\na  M.\nb  .K\n\nq  V\na  L\nb  I\n#=GC RF xxx\n//\n",
    ],
    ids=["fasta", "crlf-wrapped", "a2m", "a3m", "hhsuite", "colabfold", "query-gap", "dots", "stockholm"],
)
def test_the_same_rows_are_read_from_every_form(text: str, tmp_path: Path) -> None:
    assert rows_of(tmp_path / "family", text) == WANTED


def test_compressed_files_are_read_and_annotation_is_noted(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"#A3M#\n>sa_pred\n000\n>q one\nMKV\n>a\nBXV\n"))
    found = read_alignment(tmp_path / "x.gz")
    assert found.ids == ["q", "a"]
    assert len(found) == 2
    assert found.num_columns == 3
    assert found.codes[1].tolist() == [GAP, GAP, LETTERS.index("V")]
    assert any("sa_pred" in note for note in found.notes)
    assert any("#A3M#" in note for note in found.notes)


def test_soft_masked_rows_keep_their_columns(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "x", ">q\nMKVA\n>a\nMkVA\n>b\nMKva\n") == ["MKVA"] * 3


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        (">q\nMKV\n\n>a\nMK\n", ":4: ", "row 'a' has 2 columns, the first row 3"),
        (">q\nMKV\n>a\nM1V\n", ":3: ", "character '1'"),
        ("MKV\nMKL\n", ":1: ", "not a header"),
        (">q\n---\n>a\nMKV\n", ":1: ", "no residue in upper case"),
        ("", ":1: ", "not a header"),
        ("#A3M#\n>ss_pred\nCCC\n", ": ", "has no sequences"),
        ("# STOCKHOLM 1.0\nq MKV\na M K V\n//\n", ":3: ", "4 words"),
    ],
)
def test_what_is_not_an_alignment_is_refused_with_its_line(text: str, place: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.a2m"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_alignment(path)
    assert str(caught.value).startswith(f"{path}{place}")
    assert what in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.a2m"):
        read_alignment(tmp_path / "none.a2m")
