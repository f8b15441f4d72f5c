"""Every command that reads sequences keeps the residue table: 256 bytes, three policies, and what an error says."""

from __future__ import annotations

import math
import pickle
import re
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import error_line, protperf, table, write_fasta
from residue_table import POLICIES, TABLE, expected
from residue_table import test_table_names_every_byte_once as test_table_names_every_byte_once

from protperf import errors, io, lm
from protperf.lm.cli import main
from protperf.lm.data.store import read_store

BEFORE, AFTER = "HWHWHWHW", "CYCYCYCY"
SMALL = "num_layers = 1\nmodel_dim = 8\nnum_heads = 1\nhead_dim = 8\nffn_dim = 8\nnum_features = 4\n"
PLACE = 9


@dataclass
class Reading:
    """What a command read: lengths by record, and ids and letters where the command returns them."""

    ids: list[str] | None = None
    sequences: list[str] | None = None
    lengths: list[int] = field(default_factory=list)
    flags: list[str] | None = None
    rejected: int = 0
    messages: list[str] = field(default_factory=list)


def read_tokens(path: Path, policy: str) -> Reading:
    reader = io.read_tokens(path, residues=policy)
    records = [record for batch in reader for record in batch]
    flags = [",".join(io.flag_names(record.flags)) for record in records]
    sequences = [record.sequence for record in records]
    summary = reader.summary
    messages = list(summary.warnings)
    return Reading([r.id for r in records], sequences, [len(r) for r in records], flags, summary.rejected, messages)


def read_fasta(path: Path, policy: str) -> Reading:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = list(lm.read_fasta(path, residues=policy))
    sequences = [str(record.seq) for record in records]
    flags = [str(record.annotations["flags"]) for record in records]
    messages = [str(warning.message) for warning in caught]
    return Reading(
        [r.id for r in records], sequences, [len(s) for s in sequences], flags, rejected_in(messages), messages
    )


def read_to_train(path: Path, policy: str) -> Reading:
    messages: list[str] = []
    store = read_store(path, policy, messages.append)
    sequences = [io.decode(store.sequence(i)) for i in range(len(store))]
    assert rejected_in(messages) == store.rejected
    return Reading(None, sequences, store.lengths.tolist(), None, store.rejected, messages)


def rejected_in(messages: list[str]) -> int:
    counts = [int(match[1]) for text in messages if (match := re.search(r"rejected (\d+) of \d+ records", text))]
    assert len(counts) <= 1
    return sum(counts)


def scored(model: lm.Model, records: object, policy: str) -> Reading:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = list(model.score(records, residues=policy))
    messages = [str(warning.message) for warning in caught]
    lengths, flags = [row.len for row in rows], [row.flags for row in rows]
    return Reading([row.id for row in rows], None, lengths, flags, rejected_in(messages), messages)


@pytest.fixture
def model(runs: dict[str, Path]) -> lm.Model:
    return lm.load(runs["both"])


READERS: dict[str, Callable[[Path, str], Reading]] = {
    "io.read_tokens": read_tokens,
    "lm.read_fasta": read_fasta,
    "train": read_to_train,
}


def three_records(byte: int) -> bytes:
    odd = BEFORE.encode() + bytes([byte]) + AFTER.encode()
    return b">ok one\nMKTA\n>odd two\n" + odd + b"\n>last\nML\n"


def check(byte: int, policy: str, read: Callable[[], Reading], name: str, line: int) -> None:
    """Judge one byte: the reading is the table's, or the error names file, line, column and byte and no residue."""
    wanted = expected(byte, policy, BEFORE, AFTER)
    if wanted.sequence is None and policy != "skip":
        with pytest.raises(errors.FastaError) as caught:
            read()
        check_fault(caught.value, byte, name, line)
        return
    found = read()
    middle = [] if wanted.sequence is None else [wanted.sequence]
    assert found.rejected == (wanted.sequence is None)
    assert found.lengths == [4, *map(len, middle), 2]
    assert found.sequences in (None, ["MKTA", *middle, "ML"])
    assert found.ids in (None, ["ok", *(["odd"] if middle else []), "last"])
    assert found.flags in (None, ["", *([wanted.flags] if middle else []), ""])


def check_fault(error: errors.FastaError, byte: int, name: str, line: int) -> None:
    text = str(error)
    assert (error.path, error.line, error.column) == (name, line, PLACE)
    assert text.startswith(f"{name}:{line}:{PLACE}: ")
    assert names_byte(text, byte), text
    assert not any(part in text.removeprefix(name) for part in (BEFORE[:4], AFTER[:4], "MKTA")), text


def names_byte(text: str, byte: int) -> bool:
    """The byte itself where it can be printed, else its number (of UTF-8's first byte where a string was given)."""
    if 32 < byte < 127:
        return f"'{chr(byte)}'" in text
    return f"0x{byte:02x}" in text or f"0x{chr(byte).encode()[0]:02x}" in text


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("command", READERS)
def test_every_byte_of_a_file_meets_the_table(command: str, policy: str, tmp_path: Path) -> None:
    path = tmp_path / "three.fasta"
    for byte in range(256):
        path.write_bytes(three_records(byte))
        check(byte, policy, lambda: READERS[command](path, policy), str(path), 4)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_byte_of_a_scored_file_meets_the_table(policy: str, model: lm.Model, tmp_path: Path) -> None:
    path = tmp_path / "three.fasta"
    for byte in range(256):
        path.write_bytes(three_records(byte))
        check(byte, policy, lambda: scored(model, path, policy), str(path), 4)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_byte_of_a_scored_string_meets_the_table(policy: str, model: lm.Model) -> None:
    for byte in range(256):
        records = [("ok", "MKTA"), ("odd", BEFORE + chr(byte) + AFTER), ("last", "ML")]
        check(byte, policy, lambda records=records: scored(model, records, policy), "<record 1>", 1)


@pytest.fixture
def command(
    runs: dict[str, Path], tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Callable[..., tuple[int, bytes, str]]]:
    """Run a command in this process: exit code, standard output and standard error."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGTERM)}

    def run(name: str, path: Path, *words: object) -> tuple[int, bytes, str]:
        (tmp_path / "small.toml").write_text(SMALL)
        training = ["--fasta", path, "-o", tmp_path / "run", "--force", "--steps", 1, "--size", tmp_path / "small.toml"]
        places = training if name == "train" else [runs["both"], path]
        code = main([name, *map(str, places), "-j", "1", *map(str, words)])
        out, messages = capsysbinary.readouterr()
        return code, out, messages.decode()

    yield run
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("policy", POLICIES)
def test_each_row_of_the_table_ends_the_score_command(policy: str, command: Callable, tmp_path: Path) -> None:
    ends_of_rows = [byte for row in TABLE for byte in {row[0][0], row[0][-1]}]
    check_score_command(ends_of_rows, policy, command, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("policy", POLICIES)
def test_every_byte_of_the_table_ends_the_score_command(policy: str, command: Callable, tmp_path: Path) -> None:
    check_score_command(range(256), policy, command, tmp_path)


def check_score_command(some_bytes: Iterable[int], policy: str, command: Callable, tmp_path: Path) -> None:
    path = tmp_path / "three.fasta"
    for byte in some_bytes:
        path.write_bytes(three_records(byte))
        code, out, messages = command("score", path, "--residues", policy)
        wanted = expected(byte, policy, BEFORE, AFTER).sequence
        rows = [(row["n"], row["id"]) for row in table(out)]
        if wanted is not None:
            assert (code, rows) == (0, [("0", "ok"), ("1", "odd"), ("2", "last")]), messages
        elif policy == "skip":
            assert (code, rows) == (5, [("0", "ok"), ("2", "last")]), messages
            assert "warning: rejected 1 of 3 records" in messages
        else:
            # The table ends where the fault is; what was scored before it may stand.
            assert (code, rows) in ((1, []), (1, [("0", "ok")])), messages
            assert f"error: {path}:4:{PLACE}: " in messages
        assert BEFORE[:4] not in messages
        assert AFTER[:4] not in messages


ODD = {
    # name: content, (outcome under map, strict, skip), where a fault stands
    "nucleotides": (b">a\n" + b"ACGT" * 20 + b"\n>b\nMKVL\n>c\nMWCD\n", ("warn", "fault", "reject"), "1:1"),
    "empty record": (b">a\n>b\nMKVL\n>c\nMWCD\n", ("empty", "fault", "reject"), "1:1"),
    "trailing stop": (b">a\nMKVW*\n>b\nMKVL\n>c\nMWCD\n", ("take", "take", "take"), ""),
    "tab at the end of a line": (b">a\nMKVW\t\n>b\nMKVL\n>c\nMWCD\n", ("take", "take", "take"), ""),
    "header in Latin-1": (b">a \xe9\nMKVW\n>b\nMKVL\n>c\nMWCD\n", ("take", "fault", "take"), "1:4"),
    "line of A3M": (b"#A3M#\n>ss_pred\nHHHC\n>a\nMKVW\n>b\nMKVL\n>c\nMWCD\n", ("take", "take", "take"), ""),
    "no header": (b"MKVL\nMWCD\n", ("fault", "fault", "fault"), "1:1"),
    "empty file": (b"", ("nothing", "nothing", "nothing"), ""),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ODD)
def test_odd_files_end_each_command_as_the_table_says(
    name: str, policy: str, command: Callable, model: lm.Model, tmp_path: Path
) -> None:
    content, outcomes, place = ODD[name]
    outcome = outcomes[POLICIES.index(policy)]
    path = tmp_path / "odd.fasta"
    path.write_bytes(content)
    trains = outcome != "nothing"
    for read in (read_tokens, read_fasta, lambda path, policy: scored(model, path, policy)):
        check_odd(lambda read=read: read(path, policy), outcome, f"{path}:{place}: ")
    code, out, messages = command("score", path, "--residues", policy)
    rows = table(out)
    assert code == {"fault": 1, "reject": 5}.get(outcome, 0), messages
    assert len(rows) == {"fault": 0, "nothing": 0, "reject": 2}.get(outcome, 3)
    if outcome == "empty":
        assert (rows[0]["len"], math.isnan(float(rows[0]["ll"]))) == ("0", True)
    assert (f"error: {path}:{place}: " in messages) == (outcome == "fault")
    assert ("warning: " in messages) == (outcome in ("warn", "reject", "nothing")), messages
    code, _, messages = command("train", path, "--residues", policy, "--validate", 0.4)
    assert code == ({"fault": 1, "reject": 5}.get(outcome, 0) if trains else 1), messages
    # Training also says that one step teaches a model nothing.
    of_the_input = [line for line in messages.splitlines() if "warning: " in line and "perplexity" not in line]
    assert bool(of_the_input) == (outcome in ("warn", "reject", "nothing")), messages
    assert (tmp_path / "run").exists() == (trains and outcome != "fault")


def check_odd(read: Callable[[], Reading], outcome: str, place: str) -> None:
    if outcome == "fault":
        with pytest.raises(errors.FastaError) as caught:
            read()
        assert str(caught.value).startswith(place)
        return
    found = read()
    assert found.rejected == (outcome == "reject")
    assert found.lengths[-2:] == ([] if outcome == "nothing" else [4, 4])
    assert len(found.lengths) == {"nothing": 0, "reject": 2}.get(outcome, 3)
    if outcome == "empty":
        assert (found.lengths[0], found.flags and found.flags[0]) == (0, "empty")
    if outcome in ("warn", "nothing"):
        (text,) = found.messages
        assert ("nucleotides" if outcome == "warn" else "is empty") in text


def test_train_counts_what_it_left_out_and_ends_in_5_unless_allowed(command: Callable, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA", "bad": "MK1V", "b": "MWC", "c": "MKKL", "worse": "M-K"})
    code, _, messages = command("train", path, "--residues", "skip", "--validate", 0.3)
    assert code == 5
    assert f"protperf: warning: rejected 2 of 5 records; the first is {path}:4:3: digit" in messages
    assert command("train", path, "--residues", "skip", "--validate", 0.3, "--allow-rejects")[0] == 0
    held = write_fasta(tmp_path / "held.fa", {"a": "MKVA", "bad": "MK1V"})
    good = write_fasta(tmp_path / "good.fa", {"a": "MKVA", "b": "MWC"})
    assert command("train", good, "--residues", "skip", "--validate", held)[0] == 5


def test_notes_are_printed_unless_quiet(command: Callable, tmp_path: Path) -> None:
    path = tmp_path / "odd.fasta"
    path.write_bytes(b"\xef\xbb\xbf;by hand\n>a\nMKVA\n>b\nMWC\n")
    messages = command("score", path)[2]
    assert f"protperf: note: {path}: byte order mark dropped" in messages
    assert "comments" in messages
    assert command("score", path, "-q")[2] == ""
    assert f"protperf: note: {path}: byte order mark dropped" in command("train", path, "--validate", 0.4)[2]


@pytest.mark.parametrize(("name", "policy", "code"), [("score", "map", 1), ("train", "skip", 5)])
def test_the_real_command_line_ends_the_same(
    name: str, policy: str, code: int, runs: dict[str, Path], tmp_path: Path
) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA", "bad": BEFORE + "7" + AFTER, "b": "MWC"})
    (tmp_path / "small.toml").write_text(SMALL)
    training = ["--fasta", path, "-o", tmp_path / "run", "--steps", 1, "--size", tmp_path / "small.toml"]
    places = [*training, "--validate", 0.4] if name == "train" else [runs["both"], path]
    result = protperf(name, *places, "--residues", policy)
    assert result.returncode == code, result.stderr.decode()
    assert BEFORE[:4] not in result.stderr.decode()
    if code == 1:
        assert error_line(result).startswith(f"{path}:4:{PLACE}: digit '7'")
    else:
        assert b"rejected 1 of 3 records" in result.stderr


def test_a_string_that_no_encoding_holds_is_a_fault_of_its_place(model: lm.Model) -> None:
    for records in (["MK\ud800VA"], [("a", "MK\ud800VA")]):
        with pytest.raises(errors.FastaError, match=r"<record 0>:1:3: byte 0xed in the sequence is not ASCII"):
            model.score(records)


def test_a_fault_in_memory_names_its_record_and_hides_it(model: lm.Model) -> None:
    with pytest.raises(errors.FastaError) as caught:
        model.score(["MKVA", ("x", "MWC"), "WWHHWW?CC"])
    assert (caught.value.path, caught.value.line, caught.value.column) == ("<record 2>", 1, 7)
    assert "WWHH" not in str(caught.value)


def test_train_from_python_takes_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_fasta(tmp_path / "x.fa", {"a": "MKVA", "bad": "MKB", "b": "MWC"})
    options = {"steps": 1, "validate": 0.4, "batch_tokens": 64}
    (tmp_path / "small.toml").write_text(SMALL)
    with pytest.raises(errors.FastaError, match="ambiguous residue 'B'"):
        lm.train(path, tmp_path / "run", size=str(tmp_path / "small.toml"), residues="strict", **options)
    lm.train(path, tmp_path / "run", size=str(tmp_path / "small.toml"), residues="skip", **options)
    assert "rejected 1 of 3 records" in capsys.readouterr().err


def test_an_error_spells_the_argument_that_it_advises_as_it_is_typed(
    command: Callable, model: lm.Model, tmp_path: Path
) -> None:
    stop, table = tmp_path / "stop.fasta", tmp_path / "table.csv"
    stop.write_bytes(b">ok\nMKVL\n>a{x}\nMK*V\n")
    table.write_bytes(b"id,seq\na,MKVL\n")
    fault = f"{stop}:4:3: stop '*' inside the sequence; {{}} reads it as X"
    of_table = "this looks like a CSV or TSV table; name its column of sequences with {}"
    for path, policy, text, typed, written in (
        (stop, "strict", fault + " (record 'a{{x}}')", "--residues map", "residues='map'"),
        (table, "map", of_table, "--seq-col", "seq_col"),
    ):
        _, _, messages = command("score", path, "--residues", policy)
        assert text.format(typed) in messages
        with pytest.raises(errors.FastaError) as caught:
            scored(model, path, policy)
        assert text.format(written) in str(caught.value)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    rejected = f"rejected 1 of 2 records; the first is {fault} (record 'a{{{{x}}}}')"
    _, _, messages = command("score", stop, "--residues", "skip")
    assert rejected.format("--residues map") in messages
    reader = io.read_tokens(stop, residues="skip")
    (batch,) = reader
    assert rejected.format("residues='map'") in reader.warnings
    assert batch.rejected[0].reason == "stop '*' inside the sequence; residues='map' reads it as X"
