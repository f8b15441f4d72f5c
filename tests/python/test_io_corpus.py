"""The corpus of tests/fasta and the files of the shared data, as Python sees them."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterator

import pytest

from protperf import errors, io
from protperf.lm.fasta import read_fasta

CORPUS = pathlib.Path(__file__).parents[1] / "fasta"
POLICIES = ("map", "strict", "skip")
COMPRESSION_KINDS = {"truncated": "too early", "corrupt": "corrupt|followed", "trailing_data": "followed"}


@functools.cache
def cases() -> dict[tuple[str, str], list[list[str]]]:
    found: dict[tuple[str, str], list[list[str]]] = {}
    # Only newlines end a line of the table: some fields hold other separators.
    for line in (CORPUS / "cases.tsv").read_text(encoding="utf-8").split("\n")[1:-1]:
        file, policy, *row = line.split("\t")
        found.setdefault((file, policy), []).extend(spelled_out(row))
    return found


def spelled_out(row: list[str]) -> Iterator[list[str]]:
    what, _, count = row[0].partition("*")
    if not count:
        yield row
        return
    for index in range(int(count)):
        # Each rejection stands one line below the one before.
        moved = [f"{int(row[2].split(':')[0]) + index}:1"] if what == "reject" else row[2:3]
        yield [what, row[1], *moved, *row[3:]]


def escaped(text: str) -> str:
    odd = {c: f"\\x{ord(c):02x}" for c in set(text) if c == "\\" or ord(c) < 32 or ord(c) == 127}
    return folded("".join(odd.get(c, c) for c in text) if odd else text)


def folded(text: str) -> str:
    if len(text) < 100_000:
        return text
    unit = next(unit for unit in (1, 20) if text == text[:unit] * (len(text) // unit))
    return f"{text[:unit]}*{len(text) // unit}"


def outcome(path: pathlib.Path, policy: str) -> list[list[str]]:
    rows: list[tuple[int, list[str]]] = []
    end = ["end"]
    reader = io.read_tokens(path, residues=policy)
    try:
        for batch in reader:
            for record in batch:
                flags = ",".join(io.flag_names(record.flags))
                names = [escaped(record.id), escaped(record.description)]
                rows.append((record.n, ["record", *names, folded(record.sequence), flags]))
            for n, name, line, column, _ in batch.rejected:
                rows.append((n, ["reject", escaped(name), f"{line}:{column}"]))
    except errors.FastaError as error:
        names_path = error.path == str(path) and str(error).startswith(str(path))
        end = ["error", "-" if names_path else str(error), f"{error.line}:{error.column}" if error.line else "-"]
    return [row for _, row in sorted(rows, key=lambda item: item[0])] + [end]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_file_reads_as_written(policy):
    files = sorted((CORPUS / "files").iterdir())
    assert len(files) >= 120
    for path in files:
        expected = cases()[path.name, policy]
        found = outcome(path, policy)
        # Kinds have names in Rust only; here the place stands for them.
        *records, end = [row[:3] if row[0] in ("reject", "error") else row for row in expected]
        if end == ["error", "-", "-"]:
            assert found[-1] == end, path.name
            assert found[:-1] == records[: len(found) - 1], path.name
        else:
            assert found == [*records, end], path.name


def test_faults_of_compressed_data_are_distinguished():
    for (name, policy), rows in cases().items():
        pattern = COMPRESSION_KINDS.get(rows[-1][-1])
        if policy == "map" and pattern:
            with pytest.raises(errors.FastaError, match=pattern):
                list(io.read_tokens(CORPUS / "files" / name))


def test_other_formats_are_named():
    for (name, policy), rows in cases().items():
        what = rows[-1][-1].removeprefix("format:")
        if policy == "map" and what != rows[-1][-1]:
            with pytest.raises(errors.FastaError, match=what.split()[-1]):
                list(io.read_tokens(CORPUS / "files" / name))


def test_biopython_records_carry_what_the_reader_found():
    (record,) = read_fasta(CORPUS / "files" / "a2m_row.fasta")
    assert (record.id, str(record.seq), record.description) == ("a", "MKTTA", "a")
    assert record.annotations["flags"] == "gaps,lower_case"
    first, second = read_fasta([CORPUS / "files" / "crlf.fasta"])
    assert (first.description, second.annotations["n"]) == ("a one", 1)
    with pytest.raises(errors.FastaError):
        list(read_fasta(CORPUS / "files" / "alignment.fasta", residues="strict"))
    with pytest.warns(UserWarning, match="rejected 2 of 3 records"):
        (kept,) = read_fasta(CORPUS / "files" / "alignment.fasta", residues="skip")
    assert kept.annotations["n"] == 1
    with pytest.raises(FileNotFoundError):
        read_fasta("none.fasta")


def test_six_forms_of_one_file_read_the_same(shared_data):
    smoke = shared_data / "smoke"
    forms = [*sorted(smoke.glob("tiny*.fasta")), smoke / "tiny.fasta.gz"]
    assert len(forms) == 6
    contents = [[(record.id, record.description, record.sequence) for record in io.scan(form)] for form in forms]
    assert len(contents[0]) == 16
    assert sum(len(sequence) for *_, sequence in contents[0]) == 2182
    assert all(content == contents[0] for content in contents)


def test_edge_cases_keep_every_record(shared_data):
    records = list(io.scan(shared_data / "smoke" / "edge_cases.fasta"))
    assert len(records) == 10
    # 1,631 letters with the final stop that is stripped.
    assert sum(len(record) for record in records) == 1630
    flags = {record.id: io.flag_names(record.flags) for record in records}
    assert flags["sp|P75849|GLO22_ECOLI"] == ("trailing_stop",)
    assert flags["P01744"] == flags["P14474"] == flags["P09407"] == ("ambiguous",)


@pytest.mark.parametrize(
    ("name", "line", "column"),
    [
        ("sequence_before_header.fasta", 1, 1),
        ("digits_in_sequence.fasta", 2, 9),
        ("truncated.fasta.gz", 0, 0),
        ("not_fasta.fasta", 1, 1),
    ],
)
def test_broken_files_are_refused_by_place(shared_data, name, line, column):
    path = shared_data / "smoke" / "broken" / name
    with pytest.raises(errors.FastaError) as caught:
        list(io.read_tokens(path))
    assert (caught.value.path, caught.value.line, caught.value.column) == (str(path), line, column)


@pytest.mark.parametrize(
    ("name", "lengths", "flags"),
    [
        ("empty_file.fasta", [], []),
        ("empty_record.fasta", [153, 0, 147], [(), ("empty",), ()]),
        ("gaps_in_sequence.fasta", [76, 101], [("gaps",), ()]),
    ],
)
def test_odd_files_are_read_and_flagged(shared_data, name, lengths, flags):
    records = list(io.scan(shared_data / "smoke" / "broken" / name))
    assert [len(record) for record in records] == lengths
    assert [io.flag_names(record.flags) for record in records] == flags


@pytest.mark.parametrize(
    ("name", "records", "residues"),
    [
        ("proteome/ecoli_k12.fasta.gz", 4_357, 1_358_102),
        ("family_blat/blat_family.fasta.gz", 7_701, 1_898_409),
        ("family_blat/blat_family.a2m.gz", 8_403, None),
        ("corpus/swissprot_nr_train.fasta.gz", 113_312, 46_392_794),
        ("corpus/swissprot_nr_valid.fasta.gz", 2_500, 1_019_967),
        ("long/long_proteins.fasta.gz", 8, 104_315),
        ("probe_localisation/gramneg_train.fasta.gz", 7_062, 3_133_062),
        ("demo/globins.fasta.gz", 852, 123_465),
    ],
)
def test_real_files_have_the_counts_of_their_description(shared_data, name, records, residues):
    reader = io.read_tokens(shared_data / name)
    found = [(len(batch), int(batch.lengths.sum())) for batch in reader]
    assert sum(count for count, _ in found) == records == reader.summary.records
    if residues is not None:
        assert sum(count for _, count in found) == residues == reader.summary.residues
