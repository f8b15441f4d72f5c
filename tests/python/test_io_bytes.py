"""protperf.io.read_bytes: the bytes of any file after decompression, or an error that names it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import subprocess
import sys

import pytest

from protperf import errors, io

TEXT = random.Random(4).randbytes(300_000)
# A raw block in a frame without checksum, as `zstd --no-check` writes what it cannot compress.
ZSTD = bytes.fromhex("28b52ffd2005290000") + b"hello"
PACKED = {"plain": TEXT, "gz": gzip.compress(TEXT) + gzip.compress(b"more"), "bz2": bz2.compress(TEXT)}
PACKED["xz"] = lzma.compress(TEXT)


@pytest.mark.parametrize("kind", PACKED)
def test_a_file_gives_its_bytes_in_pieces_however_it_is_compressed(tmp_path, kind):
    (tmp_path / "x").write_bytes(PACKED[kind])
    pieces = list(io.read_bytes(tmp_path / "x"))
    assert b"".join(pieces) == TEXT + (b"more" if kind == "gz" else b"")
    assert len(pieces) > 1
    assert max(map(len, pieces)) <= 128 << 10


def test_zstd_is_read_and_an_empty_file_has_no_piece(tmp_path):
    (tmp_path / "x").write_bytes(ZSTD)
    assert list(io.read_bytes(str(tmp_path / "x"))) == [b"hello"]
    (tmp_path / "x").write_bytes(b"")
    assert list(io.read_bytes(tmp_path / "x")) == []


def test_standard_input_is_read_to_its_end():
    program = "import protperf.io as io; print(sum(map(len, io.read_bytes('-'))))"
    done = subprocess.run([sys.executable, "-c", program], input=gzip.compress(TEXT), capture_output=True)
    assert done.stdout == b"300000\n", done.stderr


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_what_is_cut_short_is_an_error_that_names_the_file_and_nothing_follows(tmp_path, kind):
    (tmp_path / "x").write_bytes(PACKED[kind][:-9] if kind != "gz" else gzip.compress(TEXT)[:-9])
    reader = io.read_bytes(tmp_path / "x")
    with pytest.raises(errors.FastaError, match=f"{tmp_path}/x: "):
        list(reader)
    assert list(reader) == []


def test_files_that_cannot_be_opened_or_are_archives_are_named(tmp_path):
    with pytest.raises(errors.MissingFileError, match="none"):
        io.read_bytes(tmp_path / "none")
    with pytest.raises(errors.FileIsDirectoryError):
        list(io.read_bytes(tmp_path))
    (tmp_path / "x.zip").write_bytes(b"PK\3\4rest")
    with pytest.raises(errors.FastaError, match=r"x.zip: .*zip archive"):
        io.read_bytes(tmp_path / "x.zip")
