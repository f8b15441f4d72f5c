"""The store of tokens: in memory or in a mapped file it is the same store, and the order of batches never changes."""

from __future__ import annotations

import errno
import hashlib
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from commands import environment
from conftest import small_config
from numpy.typing import NDArray
from tracer import KILL, trace
from training import final_digests, metrics, small_options

from protperf import io
from protperf.errors import ConfigError, DataError, FastaError, FileError
from protperf.lm.data import store as stores
from protperf.lm.data import token_file
from protperf.lm.data.batches import epoch_plan, generator
from protperf.lm.data.store import TokenStore, read_store, split, write_tokens
from protperf.lm.training.run import train_run

Sequences = list[NDArray[np.uint8]]


def sequences(seed: int, count: int = 300) -> Sequences:
    """Residues of many lengths; every fifth sequence occurs twice."""
    rng = np.random.default_rng(seed)
    found = [rng.integers(3, 29, rng.integers(1, 90)).astype(np.uint8) for _ in range(count)]
    return [found[i - 1] if i % 5 == 4 else x for i, x in enumerate(found)]


def in_memory(parts: Sequences) -> TokenStore:
    offsets = np.cumsum([0, *map(len, parts)])
    return TokenStore.packed(np.concatenate(parts), offsets)


def mapped(parts: Sequences, folder: Path) -> TokenStore:
    with open(folder / "tokens", "w+b") as stream, token_file.TokenWriter(stream, folder) as writer:
        for part in parts:
            writer.append(part, np.array([len(part)]))
        made = token_file.TokenMap(stream.fileno(), writer.finish(0))
    return TokenStore.packed(made, made.offsets)


@pytest.fixture(params=["in memory", "mapped"])
def both(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Sequences, TokenStore]:
    """Sequences and their store, which is looked at in blocks of a few sequences."""
    for module in (stores, token_file):
        monkeypatch.setattr(module, "BLOCK_BYTES", 200)
    monkeypatch.setattr(token_file, "_RESIDENT_BYTES", 1000)
    parts = sequences(1)
    return parts, in_memory(parts) if request.param == "in memory" else mapped(parts, tmp_path)


def check_same(store: TokenStore, parts: Sequences) -> None:
    """Everything that a store says, by the plainest form of it."""
    assert len(store) == len(parts)
    assert store.lengths.tolist() == [len(part) for part in parts]
    assert all((store.sequence(i) == part).all() for i, part in enumerate(parts))
    flat = np.concatenate(parts)
    offsets = np.cumsum([0, *map(len, parts)]).astype("<i8")
    assert store.num_residues == len(flat)
    assert store.fingerprint == hashlib.sha256(offsets.tobytes() + flat.tobytes()).hexdigest()
    counts = np.array([(flat == token).sum() for token in range(3, 23)], np.float64) + 1
    np.testing.assert_array_equal(store.unigram(), counts / counts.sum())


def test_a_store_is_the_same_in_memory_and_mapped(both: tuple[Sequences, TokenStore]) -> None:
    parts, store = both
    check_same(store, parts)
    assert [len(tokens) for _, tokens in store.blocks()] != [store.num_residues]


@pytest.mark.parametrize("kept", [1.0, 0.9, 0.3, 0.01])
def test_a_selection_is_the_store_of_its_sequences(both: tuple[Sequences, TokenStore], kept: float) -> None:
    parts, store = both
    indices = np.flatnonzero(generator(3).random(len(parts)) < kept)
    check_same(store.select(indices), [parts[i] for i in indices])


@pytest.mark.parametrize("fraction", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("seed", [42, -1, 2**40 + 7])
def test_a_split_goes_by_the_checksum_of_each_sequence(
    both: tuple[Sequences, TokenStore], fraction: float, seed: int
) -> None:
    parts, store = both
    marks = [zlib.crc32(part.tobytes(), seed & 0xFFFFFFFF) for part in parts]
    distinct = sorted(set(marks))
    line = min(max(round(fraction * 2**32), distinct[0] + 1), distinct[-1])
    train, held = split(store, fraction, seed)
    check_same(train, [part for part, mark in zip(parts, marks, strict=True) if mark >= line])
    check_same(held, [part for part, mark in zip(parts, marks, strict=True) if mark < line])


def test_equal_sequences_cannot_be_split() -> None:
    with pytest.raises(DataError, match="fewer than two distinct"):
        split(in_memory([np.array([3, 4], np.uint8)] * 3), 0.5, 1)


def naive_plan(lengths: NDArray[np.int64], budget: int, crop: int, seed: int, epoch: int) -> list[list[int]]:
    """One sequence after the other goes to the batch, or to the next where it does not fit."""
    rng = generator(seed, 1, epoch)
    order = rng.permutation(len(lengths))
    sizes = np.minimum(lengths + 2, crop)
    pool = max(1, int(32 * budget / max(1.0, sizes.mean())))
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        batches.append([])
        for index in sorted(order[start : start + pool].tolist(), key=lambda index: sizes[index]):
            if batches[-1] and sum(sizes[batches[-1]]) + sizes[index] > budget:
                batches.append([])
            batches[-1].append(index)
    return [batches[i] for i in rng.permutation(len(batches))]


@pytest.mark.parametrize("budget", [1, 60, 500, 100_000])
@pytest.mark.parametrize("crop", [2, 40, 1000])
def test_batches_are_filled_in_the_order_of_the_naive_plan(budget: int, crop: int) -> None:
    for count, seed in ((1, 5), (2, 6), (700, 7)):
        lengths = np.random.default_rng(seed).integers(1, 90, count)
        plan = epoch_plan(lengths, budget, crop, seed, 3)
        expected = naive_plan(lengths, budget, crop, seed, 3)
        assert [batch.tolist() for batch in plan] == expected
        assert len(plan) == len(expected)
        assert [batch.tolist() for batch in plan[1:3]] == expected[1:3]


def test_order_of_batches_and_split_are_those_of_earlier_versions() -> None:
    """Stored runs are resumed by these numbers: they may never change."""
    lengths = np.arange(1, 400, 3) % 97 + 1
    order = np.concatenate(list(epoch_plan(lengths, 300, 60, 42, 1)))
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == "5a860c6d252d1f09"
    train, held = split(in_memory(sequences(9)), 0.1, 42)
    assert (len(train), train.fingerprint[:16], held.fingerprint[:16]) == (264, "5460178d3b8f9fee", "4fec25b6ae0e257f")


def write_corpus(path: Path) -> Path:
    letters = "ACDEFGHIKLMNPQRSTVWYUOBZJX"
    parts = ["".join(letters[token - 3] for token in part) for part in sequences(2)]
    path.write_text("".join(f">p{i}\n{text}\n" for i, text in enumerate(parts)) + ">empty\n")
    return path


def test_a_token_file_is_read_as_the_files_that_it_was_written_from(tmp_path: Path) -> None:
    fasta, out = write_corpus(tmp_path / "x.fasta"), tmp_path / "x.tokens"
    assert write_tokens([fasta, fasta], out) == 600
    read, again = read_store([fasta, fasta]), read_store(out)
    assert (len(again), again.fingerprint, again.rejected) == (len(read), read.fingerprint, 0)
    assert split(again, 0.1, 42)[0].fingerprint == split(read, 0.1, 42)[0].fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.fasta", "x.tokens"]


def test_a_token_file_keeps_the_number_of_records_that_were_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.fasta").write_text(">a\nMK\n>b\nM1\n>c\nML\n")
    said: list[str] = []
    assert write_tokens(tmp_path / "x.fasta", tmp_path / "x.tokens", residues="skip", warn=said.append) == 2
    assert "rejected 1 of 3 records" in said[0]
    assert read_store(tmp_path / "x.tokens").rejected == 1


def test_many_tokens_go_to_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_MEMORY_BYTES", 1000)
    fasta, folder = write_corpus(tmp_path / "x.fasta"), tmp_path / "runs"
    folder.mkdir()
    kept = read_store(fasta, folder=None)
    for place in (folder, folder / "not" / "there"):
        filed = read_store([fasta], folder=place)
        assert isinstance(filed._source, token_file.TokenMap)
        assert filed.fingerprint == kept.fingerprint
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("others", [["x.fasta"], []])
def test_a_token_file_is_trained_on_alone(tmp_path: Path, others: list[str]) -> None:
    fasta, out = write_corpus(tmp_path / "x.fasta"), tmp_path / "x.tokens"
    write_tokens(fasta, out)
    with pytest.raises(ConfigError, match=r"x\.tokens: is a token file"):
        read_store([out, *(tmp_path / name for name in others)], seq_col=None if others else "seq")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    fasta, out = write_corpus(tmp_path / "x.fasta"), tmp_path / "x.tokens"
    write_tokens(fasta, out)
    before = out.read_bytes()
    fasta.write_text(fasta.read_text() + ">bad\nM1\n")
    with pytest.raises(DataError, match="digit '1'"):
        write_tokens(fasta, out)
    (tmp_path / "none.fasta").write_text(">a\n>b\n")
    with pytest.raises(DataError, match="no residues"):
        write_tokens(tmp_path / "none.fasta", out)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none.fasta", "x.fasta", "x.tokens"]


@pytest.mark.parametrize("place", ["by hand", "next to the run"])
def test_a_full_disk_is_an_error_that_names_the_place(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MAX_MEMORY_BYTES", 1000)
    fasta, out = write_corpus(tmp_path / "x.fasta"), tmp_path / "x.tokens"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(FileError, match="File too large") as caught:
            write_tokens(fasta, out) if place == "by hand" else read_store(fasta, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(tmp_path) in str(caught.value.filename)
    assert [path.name for path in tmp_path.iterdir()] == ["x.fasta"]


def test_a_write_killed_or_failed_at_any_call_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    fasta, folder = write_corpus(tmp_path / "x.fasta"), tmp_path / "there"
    folder.mkdir()
    out = folder / "x.tokens"
    (tmp_path / "small.fasta").write_text(">a\nMKVA\n")

    def start() -> bytes:
        write_tokens(tmp_path / "small.fasta", out)
        return out.read_bytes()

    old = start()
    whole = trace(lambda: write_tokens(fasta, out), folder)
    new = out.read_bytes()
    assert (whole.code, len(whole.calls) > 8, old != new) == (0, True, True)
    for at, call in enumerate(whole.calls, 1):
        for action in (KILL, errno.ENOSPC):
            start()
            struck = trace(lambda: write_tokens(fasta, out), folder, at, action)
            assert out.read_bytes() in (old, new), (at, call, action)
            assert struck.killed == (action == KILL)
            # What a kill left does not stand in the way of the next write.
            write_tokens(fasta, out)
            assert out.read_bytes() == new
            left = {path.name for path in folder.iterdir()}
            assert left == {"x.tokens"}, (at, call, action)


def test_training_is_the_same_on_a_token_file_and_on_a_mapped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta, out = write_corpus(tmp_path / "x.fasta"), tmp_path / "x.tokens"
    write_tokens(fasta, out)
    options = small_options(steps=3)
    train_run(fasta, tmp_path / "memory", small_config(), options)
    train_run(out, tmp_path / "by hand", small_config(), options)
    monkeypatch.setattr(stores, "MAX_MEMORY_BYTES", 1000)
    train_run(fasta, tmp_path / "mapped", small_config(), options)
    expected = metrics(tmp_path / "memory")
    assert len(expected) > 3
    for run in ("by hand", "mapped"):
        assert metrics(tmp_path / run) == expected
        assert final_digests(tmp_path / run) == final_digests(tmp_path / "memory")
    # What was started on one of them goes on with another.
    resumed = small_options(steps=5)
    train_run(out, tmp_path / "memory", small_config(), resumed, resume=True)
    train_run(fasta, tmp_path / "by hand", small_config(), resumed, resume=True)
    assert metrics(tmp_path / "memory") == metrics(tmp_path / "by hand")


def test_other_readers_name_a_token_file(tmp_path: Path) -> None:
    write_tokens(write_corpus(tmp_path / "x.fasta"), tmp_path / "x.tokens")
    with pytest.raises(FastaError, match="this looks like a token file of protperf; only training reads it"):
        list(io.read_tokens(tmp_path / "x.tokens"))


def test_an_output_that_would_replace_an_input_is_refused(tmp_path: Path) -> None:
    fasta = write_corpus(tmp_path / "x.fasta")
    (tmp_path / "link").symlink_to(fasta)
    before = fasta.read_bytes()
    for out, reason in (
        (fasta, "one of the inputs"),
        (tmp_path / "link", "one of the inputs"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(ConfigError, match=reason):
            write_tokens([fasta], out)
    assert fasta.read_bytes() == before


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_store(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_any_flipped_bit_and_any_cut_is_found(tmp_path: Path) -> None:
    write_tokens(write_corpus(tmp_path / "x.fasta"), tmp_path / "x.tokens")
    data = (tmp_path / "x.tokens").read_bytes()
    path = tmp_path / "damaged"
    rng = np.random.default_rng(4)
    places = [*range(len(token_file.MAGIC), 128), *rng.integers(128, len(data), 300)]
    padding = token_file.Header.from_bytes(data).offsets_at
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        # Nothing is read of the bytes between tokens and offsets.
        if not padding - 8 < place < padding or read_tokens_end(data) > place:
            refusal(path)
    for size in (16, 127, 128, len(data) - 1, len(data) // 2):
        path.write_bytes(data[:size])
        refusal(path)
    path.write_bytes(data + b"\0")
    assert "cut short or was changed" in refusal(path)


def read_tokens_end(data: bytes) -> int:
    return 128 + token_file.Header.from_bytes(data).num_tokens


@pytest.mark.parametrize(
    ("tokens", "offsets", "reason"),
    [
        ([3, 4, 2], [0, 3], "not residues"),
        ([3, 4, 29], [0, 3], "not residues"),
        ([3, 4, 5], [0, 2, 1, 3], "not in order"),
        ([3, 4, 5], [0, 2, 2, 3], "not in order"),
        ([3, 4, 5], [0, 2**63 - 1, -(2**63), -1, 3], "not in order"),
        ([3, 4, 5], [1, 3], "do not fit"),
        ([3, 4, 5], [0, 4], "do not fit"),
        ([], [0], "no sequences"),
    ],
)
def test_a_forged_file_is_refused_before_it_is_used(
    tokens: list[int], offsets: list[int], reason: str, tmp_path: Path
) -> None:
    body = bytes(tokens), np.array(offsets, "<i8").tobytes()
    fingerprint = hashlib.sha256(body[1] + body[0]).hexdigest()
    header = token_file.Header(len(offsets) - 1, len(tokens), 0, fingerprint)
    path = tmp_path / "forged"
    path.write_bytes((header.to_bytes() + body[0]).ljust(header.offsets_at, b"\0") + body[1])
    assert reason in refusal(path)


def test_a_file_of_a_later_version_is_named(tmp_path: Path) -> None:
    write_tokens(write_corpus(tmp_path / "x.fasta"), tmp_path / "x.tokens")
    data = bytearray((tmp_path / "x.tokens").read_bytes())
    data[16] = 2
    (tmp_path / "x.tokens").write_bytes(data)
    assert "version 2 of the layout" in refusal(tmp_path / "x.tokens")


MEASURED = Path(__file__).with_name("measured_store.py")
LIMIT_MB = 180
"""What reading may add to the memory of the process: the tokens that are kept in memory before they go to a file, the
pages of the map that stay, the numbers per sequence, and the blocks."""


def peak_mb(source: Path, folder: Path | None) -> float:
    words = [sys.executable, MEASURED, source, *([] if folder is None else [folder])]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_a_corpus_larger_than_memory_is_read_split_and_batched_in_bounded_memory(tmp_path: Path) -> None:
    """300 MB of tokens. Kept in memory as a whole, as without a folder, they are seen to break the limit."""
    fasta = tmp_path / "large.fasta"
    rng = np.random.default_rng(1)
    letters = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
    lines = letters[rng.integers(0, 20, (10_000, 1000))]
    block = b"".join(b">\n%s\n" % line.tobytes() for line in lines)
    with fasta.open("wb") as stream:
        for i in range(30):
            # Other sequences, so that both parts of the split have many.
            stream.write(block.replace(b">\n", b">\n" + letters[i % 20 :].tobytes()))
    assert peak_mb(fasta, tmp_path) < LIMIT_MB
    write_tokens(fasta, tmp_path / "large.tokens")
    assert peak_mb(tmp_path / "large.tokens", tmp_path) < LIMIT_MB
    assert peak_mb(fasta, None) > 2 * LIMIT_MB
    for path in tmp_path.iterdir():
        # Kept for the three last runs otherwise.
        path.unlink()
