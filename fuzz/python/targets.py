"""What is fuzzed in Python: every reader of a file that anyone may have made or that a crash may have left.

A target takes bytes, writes the file, reads it with the product's own code and judges the result: a consistent value,
or an error of the right class that names the file in one short line. Anything else is a finding. `fuzz/python/run.py`
runs these for a minute each; the tests run the corpus and mutations of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from protperf.errors import CheckpointError, ConfigError, DataError
from protperf.lm.data import token_file
from protperf.lm.model.config import ModelConfig
from protperf.lm.storage import checkpoint, plain_file, tensor_file
from protperf.lm.storage import manifest as stored
from protperf.lm.tables.destination import companions
from protperf.lm.tables.formats import Encoder
from protperf.lm.tables.sink import FileSink
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.progress import Progress, read_progress
from protperf.lm.training.state import read_options

MAX_CPU_S = 1.0
MAX_MESSAGE_LENGTH = 600
CORPUS = Path(__file__).resolve().parents[1] / "corpus"
# Files in memory where the system has them: a disk would be the slowest part.
_FOLDER = tempfile.TemporaryDirectory(prefix="protperf-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
FOLDER = Path(_FOLDER.name)


class Finding(AssertionError):
    """The product gave a wrong answer, a wrong error, or took too long."""


@contextlib.contextmanager
def judged(path: Path, *allowed: type[Exception]) -> Iterator[None]:
    """Pass over errors of the allowed classes that name the file; everything else is a finding."""
    before = time.process_time()
    try:
        yield
    except allowed as error:
        text = str(error)
        if os.fspath(path) not in text:
            raise Finding(f"the message does not name {path}: {text!r}") from error
        if len(text) > MAX_MESSAGE_LENGTH or not text.isprintable():
            raise Finding(f"the message is not one short line: {text[:2000]!r}") from error
    if time.process_time() - before > MAX_CPU_S:
        raise Finding(f"took {time.process_time() - before:.1f} s of processor time")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


def manifest(data: bytes) -> None:
    """A manifest as it is, and the same table under a seal that fits it."""
    path = FOLDER / checkpoint.MANIFEST
    path.write_bytes(data)
    with judged(path, CheckpointError):
        plain_file.read_sealed(path)
        _expect(b"sha256" in data, "a manifest without a seal was believed")
    with judged(path, CheckpointError):
        try:
            table = plain_file.parse_table(path, data)
            path.write_bytes(plain_file.seal({k: v for k, v in table.items() if k != "sha256"}))
        except RecursionError:
            return
        step = checkpoint.Step(FOLDER, 3, plain_file.read_sealed(path))
        facts, options = stored.read_facts(step), read_options(step)
        progress = read_progress(step)
        _expect(Progress.from_mapping(progress.to_mapping()) == progress, "progress does not survive a save")
        _expect(TrainOptions.from_mapping(dataclasses.asdict(options)) == options, "options do not survive a save")
        _expect(len(facts["data_sha256"]) == 64, "a digest of another length was believed")


def config(data: bytes) -> None:
    """The configuration of a network in a checkpoint."""
    path = FOLDER / "config.json"
    path.write_bytes(data)
    with judged(path, CheckpointError):
        found = stored.read_config(checkpoint.Step(FOLDER, 3, {}))
        saved = json.loads(json.dumps(found.to_mapping()))
        _expect(ModelConfig.from_mapping(saved) == found, "does not survive a save")


def size(data: bytes) -> None:
    """A TOML file that a user names as the size of a model."""
    path = FOLDER / "size.toml"
    path.write_bytes(data)
    with judged(path, ConfigError):
        found = ModelConfig.from_size(os.fspath(path))
        _expect(ModelConfig.from_mapping(found.to_mapping()) == found, "does not survive a save")


def tensors(data: bytes) -> None:
    """A tensor file: two bytes that say how much data follows, then the header. Judged by the safetensors library."""
    path = FOLDER / "model.safetensors"
    length = struct.unpack("<H", data[:2])[0] if len(data) >= 2 else 0
    header = data[2:]
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + length)
    with judged(path, CheckpointError):
        layout = tensor_file.read_layout(path)
        sizes = {"F64": 8, "F32": 4, "I64": 8}
        total = sum(sizes[kind] * math.prod(shape) for kind, shape in layout.values())
        _expect(total == length, f"tensors of {total} bytes in {length}")
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as peer:
                theirs = {name: tuple(peer.get_slice(name).get_shape()) for name in peer.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise Finding(f"read what the safetensors library refuses: {error}") from error
        _expect(theirs == {name: shape for name, (_, shape) in layout.items()}, "other names or shapes than its peer")


_HEADER, _ROWS = "a\tb\n", [f"{n}\t{n * n}\n" for n in range(4)]
_FINGERPRINT = {"model_sha256": "ab" * 32, "method": "ll", "batch_tokens": 4096}


@dataclasses.dataclass
class _Row:
    a: int
    b: int


@dataclasses.dataclass
class _Record:
    n: int
    id: str
    tokens: bytes


class _Tokens(bytes):
    def tobytes(self) -> bytes:
        return bytes(self)


def journal(data: bytes) -> None:
    """The journal of an interrupted table, with any contents: the finished table is right or the resume is refused."""
    out = FOLDER / "table.tsv"
    part, place, meta = companions(out)
    for contents, forged in ((data, False), (_sealed(place, data), True)):
        if contents is not None:
            _resume(out, part, place, meta, contents, forged)


def _sealed(place: Path, data: bytes) -> bytes | None:
    """The same table with a seal that fits it; None if it is not one."""
    with contextlib.suppress(CheckpointError, RecursionError):
        table = plain_file.parse_table(place, data)
        return plain_file.seal({name: value for name, value in table.items() if name != "sha256"})
    return None


def _resume(out: Path, part: Path, place: Path, meta: Path, contents: bytes, forged: bool) -> None:
    for path in (out, meta):
        path.unlink(missing_ok=True)
    part.write_text(_HEADER + "".join(_ROWS[:2]) + "2\t")
    place.write_bytes(contents)
    records = [_Record(n, f"r{n}", _Tokens([3, 4, n])) for n in range(4)]
    with judged(part, ConfigError, DataError):
        sink = FileSink(out, Encoder(_Row, "tsv"), _FINGERPRINT, resume=True)
        try:
            waiting = iter(records)
            sink.replay(waiting)
            for record in waiting:
                sink.write([record], [_Row(record.n, record.n**2)])
            sink.finish({})
        finally:
            sink._close()
        # Whoever seals a journal of their own may count rows as they please.
        _expect(forged or out.read_text() == _HEADER + "".join(_ROWS), f"the table became {out.read_text()!r}")


def corpus(data: bytes) -> None:
    """A file of tokens as it stands, and the same bytes as tokens and offsets under a header that fits them."""
    path = FOLDER / "proteins.tokens"
    for contents in (data, _token_file(data)):
        path.write_bytes(contents)
        with judged(path, DataError):
            mapped = token_file.open_tokens(path)
            bounds = mapped.offsets.tolist()
            _expect(bounds[0] == 0 and bounds[-1] == len(mapped.tokens), "offsets that do not span the tokens")
            _expect(bounds == sorted(set(bounds)), "offsets that do not ascend")
            _expect(set(mapped.tokens.tolist()) <= set(range(3, 29)), "tokens that are not residues")


def _token_file(data: bytes) -> bytes:
    """The first byte counts the tokens that follow; each byte after them is an offset, which may be negative."""
    count = data[0] if data else 0
    tokens = data[1 : 1 + count]
    offsets = np.frombuffer(data[1 + count :], np.int8).astype("<i8").tobytes()
    fingerprint = hashlib.sha256(offsets + tokens).hexdigest()
    header = token_file.Header(max(0, len(offsets) // 8 - 1), len(tokens), 0, fingerprint)
    return (header.to_bytes() + tokens).ljust(header.offsets_at, b"\0") + offsets


def seeds(name: str) -> list[bytes]:
    """The corpus of a target, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "manifest": manifest,
    "config": config,
    "size": size,
    "tensors": tensors,
    "journal": journal,
    "corpus": corpus,
}
