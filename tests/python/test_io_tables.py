"""protperf.io on tables: CSV and TSV in, the records of their rows out, against the readers that people know."""

from __future__ import annotations

import bz2
import csv
import gzip
import io as text_io
import lzma
import string
import subprocess
import sys

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protperf import errors, io

TABLE = "mutant,mutated_sequence,DMS_score\nA2G,MGKV,0.5\n,mk-v,-1\nX 9 see note,MKV*,nan\n"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["plain", "gz", "bz2", "xz"])
def test_rows_are_records_plain_or_compressed(tmp_path, pack):
    path = tmp_path / "dms.csv"
    path.write_bytes(pack(TABLE.encode()))
    (batch,) = io.read_tokens(path, seq_col="mutated_sequence", id_col="mutant")
    assert batch.ids == ["A2G", "", "X"]
    assert batch.descriptions == ["", "", "9 see note"]
    assert io.decode(batch.tokens) == "MGKVMKVMKV"
    assert batch.lines.tolist() == [2, 3, 4]
    assert batch.ordinals.tolist() == [0, 1, 2]
    flags = [io.flag_names(int(flags)) for flags in batch.flags]
    assert flags == [(), ("gaps", "lower_case", "no_id"), ("trailing_stop",)]


def test_places_count_over_several_tables(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("seq\nMKV\nACD\n")
    records = list(io.scan([tmp_path / "a", tmp_path / "b"], seq_col="seq"))
    assert [(record.n, record.id) for record in records] == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]


def test_standard_input_may_be_a_table():
    program = "import protperf.io as io; print([(r.id, r.sequence) for r in io.scan('-', seq_col='s')])"
    done = subprocess.run([sys.executable, "-c", program], input="id\ts\nx\tMKV\n", capture_output=True, text=True)
    assert done.stdout == "[('x', 'MKV')]\n", done.stderr


def test_skip_leaves_out_rows_and_names_the_first(tmp_path):
    path = tmp_path / "some.tsv"
    path.write_text("id\tseq\na\tMKV\nb\tMK1\nc\t\nd\tNA\ne\tACD\n")
    reader = io.read_tokens(path, residues="skip", seq_col="seq")
    ids = [record.id for batch in reader for record in batch]
    assert ids == ["a", "e"]
    assert reader.summary.rejected == 3
    (warning,) = reader.warnings
    assert warning.startswith("rejected 3 of 5 records; the first is")
    assert f"{path}:3:5: digit '1'" in warning


@pytest.mark.parametrize(("text", "records", "warned"), [("", 0, True), ("id,seq\n", 0, False), ("id,seq", 0, False)])
def test_tables_without_rows_are_empty(tmp_path, text, records, warned):
    path = tmp_path / "empty.csv"
    path.write_text(text)
    reader = io.read_tokens(path, seq_col="seq")
    assert sum(len(batch) for batch in reader) == records
    assert bool(reader.summary.warnings) == warned


def test_faults_carry_path_and_place(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text("id,seq\na,MKV\nb,MKV,\n")
    with pytest.raises(errors.FastaError, match=r"bad.csv:3:1: 3 fields in a table of 2 columns") as caught:
        list(io.scan(path, seq_col="seq"))
    assert (caught.value.path, caught.value.line, caught.value.column) == (str(path), 3, 1)
    with pytest.raises(errors.FastaError, match=r"bad.csv:1:1: no column 'sequence'; .* names 'id', 'seq'"):
        list(io.scan(path, seq_col="sequence"))
    with pytest.raises(errors.FastaError, match="looks like a CSV or TSV table; name its column of sequences"):
        list(io.scan(path))
    with pytest.raises(errors.ConfigError, match="id_col is 'id' but seq_col is missing"):
        io.read_tokens(path, id_col="id")


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_what_pandas_writes_is_read(tmp_path, separator):
    path = tmp_path / "frame.csv"
    notes = ["plain", 'a "quoted" word', "two\nlines", "a, b; c\td"]
    frame = pandas.DataFrame({"seq": ["MKV", "ACD", "", "WWW"], "note": notes, "id": list("abcd")})
    frame.to_csv(path, sep=separator)
    records = list(io.scan(path, seq_col="seq"))
    assert [(record.id, record.sequence) for record in records] == list(zip(frame.id, frame.seq, strict=True))


CELLS = st.text(st.sampled_from("ab\",;\t 'é"), max_size=6)
ROWS = st.lists(st.tuples(CELLS, st.text(string.ascii_uppercase[:9], min_size=1, max_size=9), CELLS), max_size=8)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(rows=ROWS, separator=st.sampled_from(",\t"), quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_csv_writes_is_read(tmp_path_factory, rows, separator, quoting):
    stream = text_io.StringIO()
    writer = csv.writer(stream, delimiter=separator, quoting=quoting)
    writer.writerows([("x", "seq", "id"), *rows])
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_text(stream.getvalue(), encoding="utf-8", newline="")
    records = list(io.scan(path, seq_col="seq"))
    assert [record.sequence for record in records] == [sequence for _, sequence, _ in rows]
    for record, (*_, name) in zip(records, rows, strict=True):
        assert f"{record.id} {record.description}".split() == name.split()


@settings(max_examples=500, deadline=None, derandomize=True)
@given(text=st.lists(st.sampled_from(['"', '""', ",", "\r\n", "MK", "x", 'a,"b"\r\n', '"c\r\nd",MK\r\n']), max_size=12))
def test_nothing_is_read_that_a_strict_reader_refuses_or_reads_otherwise(tmp_path_factory, text):
    data = "id,seq\r\n" + "".join(text)
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(data, encoding="utf-8", newline="")
    try:
        found = [(record.id, record.sequence) for record in io.scan(path, seq_col="seq")]
    except errors.FastaError:
        return
    expected = [row for row in csv.reader(text_io.StringIO(data, newline=""), strict=True) if row][1:]
    assert [sequence for _, sequence in found] == [sequence.upper() for _, sequence in expected]
    assert [name.split() for name, _ in found] == [name.split()[:1] for name, _ in expected]
