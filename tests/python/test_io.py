"""protperf.io: files in, token arrays out; what the policy, the system and signals do on the way."""

from __future__ import annotations

import gzip
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from machine import HANG_S, wait_until, waits_for_input

from protperf import errors, io

RECORDS = b">a first one\nMKTAY\nIAKQR\n>b\nGSHW*\n>none\n>a again\nmk-xt\n"


@pytest.fixture
def fasta(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "some.fasta"
    path.write_bytes(RECORDS)
    return path


def test_batch_holds_packed_arrays_of_fixed_types(fasta):
    (batch,) = io.read_tokens(fasta)
    assert batch.path == str(fasta)
    assert batch.ids == ["a", "b", "none", "a"]
    assert batch.descriptions == ["first one", "", "", "again"]
    assert io.decode(batch.tokens) == "MKTAYIAKQRGSHWMKXT"
    assert (batch.tokens.dtype, batch.offsets.dtype, batch.flags.dtype) == (np.uint8, np.int64, np.uint16)
    np.testing.assert_array_equal(batch.offsets, [0, 10, 14, 14, 18])
    np.testing.assert_array_equal(batch.lengths, [10, 4, 0, 4])
    np.testing.assert_array_equal(batch.ordinals, [0, 1, 2, 3])
    np.testing.assert_array_equal(batch.lines, [1, 4, 6, 7])
    flags = [io.flag_names(int(flags)) for flags in batch.flags]
    assert flags == [(), ("trailing_stop",), ("empty",), ("gaps", "lower_case", "ambiguous")]
    assert batch.rejected == []
    for array in (batch.tokens, batch.offsets, batch.lengths, batch.ordinals, batch.flags):
        assert not array.flags.writeable


def test_records_come_one_by_one_with_their_place(fasta):
    first, *_, last = io.scan(fasta)
    assert (first.n, first.id, first.description, first.sequence) == (0, "a", "first one", "MKTAYIAKQR")
    assert (last.n, last.line, len(last), last.path) == (3, 7, 4, str(fasta))


@pytest.mark.parametrize("batch_bytes", [1, 100, 1 << 20])
def test_records_are_the_same_at_any_batch_size(tmp_path, batch_bytes):
    path = tmp_path / "many.fasta.gz"
    path.write_bytes(gzip.compress(b"".join(b">r%d\n%s\n" % (i, b"MKTAYIAKQR" * (i % 97)) for i in range(5000))))
    reader = io.read_tokens(path, batch_bytes=batch_bytes)
    ids, ordinals, residues = [], [], 0
    for batch in reader:
        ids += batch.ids
        ordinals += batch.ordinals.tolist()
        residues += int(batch.lengths.sum())
    assert ids == [f"r{i}" for i in range(5000)]
    assert ordinals == list(range(5000))
    assert reader.summary.records == 5000
    assert reader.summary.residues == residues == sum(10 * (i % 97) for i in range(5000))


def test_several_paths_count_on_and_name_themselves(tmp_path, fasta):
    other = tmp_path / "other.fasta"
    other.write_bytes(b">c\nM1\n>d\nML\n")
    reader = io.read_tokens([fasta, str(other)], residues="skip")
    batches = list(reader)
    assert [batch.path for batch in batches] == [str(fasta), str(other)]
    np.testing.assert_array_equal(batches[0].ordinals, [0, 1])
    np.testing.assert_array_equal(batches[1].ordinals, [5])
    assert batches[1].rejected == [(4, "c", 2, 2, "digit '1' in the sequence; remove position numbers")]
    assert (reader.summary.records, reader.summary.rejected) == (3, 3)


def test_records_before_a_fault_come_first_and_the_end_after_it(tmp_path):
    path = tmp_path / "bad.fasta"
    path.write_bytes(b">a\nMK\n>b\nM1\n>c\nMK\n")
    reader = io.read_tokens([path, path])
    assert next(reader).ids == ["a"]
    with pytest.raises(errors.FastaError) as caught:
        next(reader)
    assert (caught.value.path, caught.value.line, caught.value.column) == (str(path), 4, 2)
    assert str(caught.value).startswith(f"{path}:4:2: digit '1'")
    assert list(reader) == []


def test_missing_unreadable_and_directory_are_file_errors(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        io.read_tokens(tmp_path / "none.fasta")
    assert isinstance(caught.value, errors.FileError)
    assert caught.value.filename == str(tmp_path / "none.fasta")
    with pytest.raises(IsADirectoryError):
        io.read_tokens(tmp_path)
    if os.geteuid() != 0:
        secret = tmp_path / "secret.fasta"
        secret.write_bytes(RECORDS)
        secret.chmod(0)
        with pytest.raises(PermissionError):
            next(io.read_tokens(secret))


def test_one_missing_path_stops_before_anything_is_read(tmp_path, fasta):
    with pytest.raises(errors.MissingFileError):
        io.read_tokens([fasta, tmp_path / "none.fasta"])


def test_unknown_policy_is_a_config_error(fasta):
    with pytest.raises(errors.ConfigError, match="map, strict, skip"):
        io.read_tokens(fasta, residues="lenient")
    with pytest.raises(errors.ConfigError, match="once"):
        io.read_tokens(["-", "-"])


def test_file_that_changes_while_read_is_refused(tmp_path):
    path = tmp_path / "growing.fasta"
    path.write_bytes(b">a\n" + b"MKTAYIAKQR\n" * 100_000 + b">b\nMK\n")
    reader = io.read_tokens(path, batch_bytes=1)
    assert next(reader).ids == ["a"]
    with path.open("ab") as file:
        file.write(b"TAY\n")
    with pytest.raises(errors.FileError, match="changed while it was read"):
        list(reader)


def test_empty_file_warns_and_gives_nothing(tmp_path):
    path = tmp_path / "empty.fasta"
    path.touch()
    reader = io.read_tokens(path)
    assert list(reader) == []
    assert reader.summary.warnings == (f"{path}: the file is empty",)


def test_marks_comments_and_nucleotides_are_reported(tmp_path):
    path = tmp_path / "odd.fasta"
    path.write_bytes(b"\xef\xbb\xbf;by hand\n>a\n" + b"ACGT" * 20 + b"\n>b\nMK\n")
    reader = io.read_tokens(path)
    list(reader)
    assert len(reader.summary.notes) == 2
    assert "byte order mark" in reader.summary.notes[0]
    assert "comments" in reader.summary.notes[1]
    (warning,) = reader.summary.warnings
    assert "1 of 2 records look like nucleotides" in warning
    assert reader.summary.flagged["nucleotides"] == 1


def test_what_an_alignment_holds_besides_its_rows_is_noted(tmp_path):
    path = tmp_path / "rows.a3m"
    path.write_bytes(b"#101\t1\n>ss_pred x\nHHC\n>ss_conf\n987\n>101\nMK-V\t\n>caf\xe9 \xc5\nMKv\n")
    reader = io.read_tokens(path)
    (batch,) = reader
    assert (batch.ids, batch.descriptions, batch.ordinals.tolist()) == (["101", "café"], ["", "Å"], [0, 1])
    assert [io.flag_names(int(flags)) for flags in batch.flags] == [("gaps",), ("lower_case", "latin1_header")]
    line, annotation = reader.summary.notes
    assert line == f"{path}: line that starts with '#' dropped before the first header"
    assert annotation.startswith(f"{path}: 2 records left out that annotate an alignment (ss_dssp")
    assert (reader.summary.records, reader.summary.rejected, reader.summary.flagged["latin1_header"]) == (2, 0, 1)


def test_every_flag_is_documented():
    documented = (pathlib.Path(io.__file__).read_text().split("FLAGS: dict")[1]).split('"""')[1]
    assert [line.split("`")[1] for line in documented.splitlines() if line.startswith("- ")] == list(io.FLAGS)


def test_memory_map_gives_the_same(fasta):
    (mapped,), (read,) = io.read_tokens(fasta, memory_map=True), io.read_tokens(fasta)
    assert mapped.ids == read.ids
    assert mapped.tokens.tobytes() == read.tokens.tobytes()


def run(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=HANG_S, **options)


COUNT = "import sys; from protperf import io; print(sum(len(b) for b in io.read_tokens(sys.argv[1])))"


def test_standard_input_is_read_plain_and_compressed():
    for data in (RECORDS, gzip.compress(RECORDS)):
        assert run(COUNT, "-", input=data).stdout == b"4\n"


def test_named_pipe_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(gzip.compress(RECORDS)))
    writer.start()
    assert sum(len(batch) for batch in io.read_tokens(pipe)) == 4
    writer.join()


@pytest.mark.parametrize("head", [b"", b">a\nMK\n", gzip.compress(RECORDS)[:20]], ids=["nothing", "plain", "gzip"])
def test_interrupt_is_answered_while_a_pipe_waits(head):
    code = "from protperf import io\nprint('ready', flush=True)\nlist(io.read_tokens('-'))"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, stderr=-1)
    assert process.stdout.readline() == b"ready\n"
    process.stdin.write(head)
    process.stdin.flush()
    assert wait_until(lambda: waits_for_input(process.pid))
    process.send_signal(signal.SIGINT)
    # The writing end stays open: a read that the signal does not end never ends.
    assert process.wait(timeout=HANG_S) != 0
    assert b"KeyboardInterrupt" in process.communicate()[1]


def test_gil_is_released_while_reading(tmp_path):
    path = tmp_path / "large.fasta.gz"
    path.write_bytes(gzip.compress(b">a\n" + b"ACDEFGHIKLMNPQRSTVWY" * 1_000_000 + b"\n", compresslevel=1))
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0.0005)

    ticker = threading.Thread(target=tick)
    ticker.start()
    before = sys.getswitchinterval()
    # Nobody takes the lock from a thread that holds it: others run only where it is released.
    sys.setswitchinterval(HANG_S)
    try:
        first = ticks
        assert sum(int(batch.lengths.sum()) for batch in io.read_tokens(path)) == 20_000_000
        ticks_while_reading = ticks - first
    finally:
        sys.setswitchinterval(before)
        done.set()
        ticker.join()
    # It may be released at either end; in between it is released every 20 ms, of which the file takes some.
    assert ticks_while_reading > 3


def test_memory_stays_bounded_by_the_batch(tmp_path):
    path = tmp_path / "x.fasta.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for i in range(400):
            file.write(b">r%d\n" % i + b"ACDEFGHIKLMNPQRSTVWY" * 12500 + b"\n")
    assert kilobytes_to_read(path, batch_bytes=1 << 20) < 32 << 10
    # One batch of all 100 MB is seen to be more.
    assert kilobytes_to_read(path, batch_bytes=1 << 30) > 90 << 10


def kilobytes_to_read(path: pathlib.Path, batch_bytes: int) -> int:
    """By how much the memory in use rises at its highest. (`ru_maxrss` starts at the parent's and may hide it.)"""
    code = """
import pathlib, re, sys
import numpy
from protperf import io
kilobytes = lambda name: int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before = kilobytes("VmRSS")
total = sum(int(batch.lengths.sum()) for batch in io.read_tokens(sys.argv[1], batch_bytes=int(sys.argv[2])))
assert total == 400 * 250_000
print(kilobytes("VmHWM") - before)
"""
    result = run(code, str(path), str(batch_bytes))
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


def test_encode_and_decode_are_inverse_on_the_alphabet():
    letters = "".join(name for name in io.VOCABULARY if len(name) == 1)
    tokens, flags = io.encode(letters)
    assert tokens.tolist() == list(range(3, 29))
    assert io.flag_names(flags) == ("ambiguous",)
    assert io.decode(tokens) == letters
    assert io.decode(io.encode("")[0]) == ""


def test_encode_keeps_the_policy_and_hides_the_sequence():
    assert io.decode(io.encode("mk*l-")[0]) == "MKXL"
    for sequence, policy in [("WWWW1", "map"), ("WWWW-", "strict"), ("WWWWB", "skip"), (">a\nWWWW", "map")]:
        with pytest.raises(errors.FastaError) as caught:
            io.encode(sequence, residues=policy)
        assert "WW" not in str(caught.value)


def test_checksums_are_those_of_zlib(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
    offsets = np.array([0, 0, 1, 17, 17, 400, 1000])
    for seed in (0, 1, 0xFFFFFFFF):
        expected = [zlib.crc32(tokens[a:b].tobytes(), seed) for a, b in itertools.pairwise(offsets)]
        assert io.checksums(tokens, offsets, seed).tolist() == expected
    assert io.checksums(tokens, offsets[:1]).tolist() == io.checksums(tokens, offsets[:0]).tolist() == []
    for wrong in ([0, 1001], [5, 4], [-1, 2]):
        with pytest.raises(errors.ShapeError, match=r"offsets\[0\]"):
            io.checksums(tokens, np.array(wrong))
    with pytest.raises(errors.DtypeError, match="tokens"):
        io.checksums(tokens.astype(np.int16), offsets)
    with pytest.raises(errors.ShapeError, match="contiguous"):
        io.checksums(tokens[::2], offsets)


def test_decode_refuses_what_is_not_a_residue():
    with pytest.raises(ValueError, match="token 2 at index 1"):
        io.decode(bytes([3, 2]))
    with pytest.raises(ValueError, match="token 29"):
        io.decode(bytes([29]))


def test_numpy_is_imported_only_for_batches():
    code = "import sys; from protperf import io; assert 'numpy' not in sys.modules, 'numpy'"
    assert run(code).returncode == 0


def test_one_reader_in_two_threads_is_an_error_or_works_never_a_hang(tmp_path):
    path = tmp_path / "x.fasta"
    path.write_bytes(b"".join(b">r%d\n%s\n" % (i, b"MKTAYIAKQR" * 100) for i in range(5000)))
    reader = io.read_tokens(path, batch_bytes=1)
    found: list[int] = []

    def work() -> None:
        while True:
            try:
                found.append(len(next(reader)))
            except StopIteration:
                return
            except RuntimeError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=HANG_S)
        assert not thread.is_alive()
    assert sum(found) == 5000
