"""The files that vectors end up in, written in bounded memory from a partial file. Equal contents give equal bytes.

| format | |
| --- | --- |
| `npz`, `h5` | arrays `n`, `id`, `length` [R]; per pool [R, C], or `residues` [sum L, C], `offsets` [R+1] |
| `safetensors` | the same, but ids as `id_bytes` (UTF-8) and `id_offsets` [R+1], for it has no text |
| `parquet` | one row per record; a pool is a list of C numbers, and `residues` a list of L such lists |

Where the vectors come from is in the metadata under `protperf`, as JSON: an array of that name in `npz`, an attribute
in `h5`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from protperf.errors import MissingPackageError
from protperf.lm.embedding.partial_file import Layout, PartialFile, gathered, row_bytes
from protperf.lm.embedding.vectors import Embedded
from protperf.lm.inference import in_batches
from protperf.lm.storage import durable

METADATA = "protperf"
_GROUP_NUMBERS = 1 << 20
"""About how many numbers a group of rows of a Parquet file has."""
_TENSOR_TYPES = {"<f4": "F32", "<f2": "F16", "<i8": "I64", "|u1": "U8"}


def require(name: str) -> None:
    """Check for the package of a format before any work is done.

    Raises:
        MissingPackageError: it is not installed, or cannot be imported.
    """
    package = {"parquet": "pyarrow", "h5": "h5py"}.get(name)
    if package is None:
        return
    try:
        import_module("pyarrow.parquet" if name == "parquet" else package)
    except ImportError as error:
        text = f"format {name} needs {package} ({error}); install it with pip install {package}"
        raise MissingPackageError(text) from error


class VectorEncoder:
    """Rows of vectors as bytes of a partial file, and that as a file of a format; a `RowEncoder`."""

    def __init__(self, name: str, layout: Layout, metadata: Mapping[str, Any]) -> None:
        self.name, self._layout, self._metadata = name, layout, metadata

    def header(self) -> str:
        return ""

    def data(self, rows: Iterable[Embedded]) -> bytes:
        return b"".join(map(row_bytes, rows))

    def finished(self, part: Path, out: Path) -> Path:
        content = PartialFile(part, self._layout, self._metadata)
        if self.name == "h5":
            return _stage_h5(content, out)
        write = {"npz": write_npz, "safetensors": write_safetensors, "parquet": write_parquet}[self.name]
        return durable.stage_file(out, lambda stream: write(content, stream))


@dataclass(frozen=True, slots=True)
class _Array:
    """An array of a file: type, shape and bytes, in pieces."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[bytes]]


def _arrays(content: PartialFile) -> dict[str, _Array]:
    """All arrays but the ids, in the order of their files."""
    layout = content.layout
    found = {
        "n": _Array("<i8", (content.rows,), lambda: _integers(n for n, _, _ in content.heads())),
        "length": _Array("<i8", (content.rows,), lambda: _integers(length for _, length, _ in content.heads())),
    }
    if layout.is_per_residue:
        found["offsets"] = _offsets(content, lambda: (length for _, length, _ in content.heads()))
    count = content.residues if layout.is_per_residue else content.rows
    for name in layout.names:
        # A name of its own for each turn of the loop.
        pieces = (lambda wanted: lambda: content.pieces(wanted))(name)
        found[name] = _Array(layout.numpy_dtype.str, (count, layout.dim), pieces)
    return found


def _offsets(content: PartialFile, sizes: Callable[[], Iterator[int]]) -> _Array:
    return _Array("<i8", (content.rows + 1,), lambda: _integers(itertools.accumulate(sizes(), initial=0)))


def _integers(values: Iterable[int]) -> Iterator[bytes]:
    for group in _groups(values):
        yield np.array(group, "<i8").tobytes()


def _groups(values: Iterable[Any], size: int = 1 << 16) -> Iterator[list[Any]]:
    remaining = iter(values)
    while group := list(itertools.islice(remaining, size)):
        yield group


def _text(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, sort_keys=True)


def write_npz(content: PartialFile, stream: BinaryIO) -> None:
    """Write what `numpy.load` reads. The vectors are not compressed; ids are, for each has the room of the longest."""
    width = max(1, content.id_letters)
    ids = _Array(f"<U{width}", (content.rows,), lambda: _padded((name for _, _, name in content.heads()), width))
    text = _text(content.metadata)
    metadata = _Array(f"<U{len(text)}", (), lambda: _padded([text], len(text)))
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in {"id": ids, **_arrays(content), METADATA: metadata}.items():
            # A fixed date: the same vectors are the same bytes.
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED if array.dtype.startswith("<U") else zipfile.ZIP_STORED
            with archive.open(entry, "w", force_zip64=True) as member:
                header = {"descr": array.dtype, "fortran_order": False, "shape": array.shape}
                np.lib.format.write_array_header_1_0(member, header)
                for piece in gathered(array.pieces()):
                    member.write(piece)


def _padded(texts: Iterable[str], width: int) -> Iterator[bytes]:
    for text in texts:
        yield text.encode("utf-32-le").ljust(4 * width, b"\0")


def write_safetensors(content: PartialFile, stream: BinaryIO) -> None:
    """Write what `safetensors.numpy.load_file` reads."""
    arrays = _arrays(content)
    arrays["id_offsets"] = _offsets(content, lambda: (len(name.encode()) for _, _, name in content.heads()))
    arrays["id_bytes"] = _Array("|u1", (content.id_bytes,), lambda: (name.encode() for _, _, name in content.heads()))
    # Wide types first, so that each array lies at a multiple of its own.
    ordered = dict(sorted(arrays.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize))
    header: dict[str, Any] = {"__metadata__": {METADATA: _text(content.metadata)}}
    position = 0
    for name, array in ordered.items():
        end = position + int(np.prod(array.shape, dtype=np.int64)) * np.dtype(array.dtype).itemsize
        kind = _TENSOR_TYPES[array.dtype]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for array in ordered.values():
        for piece in gathered(array.pieces()):
            stream.write(piece)


def write_parquet(content: PartialFile, stream: BinaryIO) -> None:
    """Write one row per record, in groups of about a million numbers, or of one record that has more."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    layout = content.layout
    vector = pa.list_(pa.float32() if layout.dtype == "f32" else pa.float16(), layout.dim)
    kind = pa.large_list(vector) if layout.is_per_residue else vector
    heads = [("n", pa.int64()), ("id", pa.string()), ("length", pa.int64())]
    schema = pa.schema([*heads, *((name, kind) for name in layout.names)], {METADATA: _text(content.metadata)})
    # What would be tried and given up for every column of numbers that never repeat.
    with ParquetWriter(stream, schema, use_dictionary=["id"]) as writer:
        for rows in in_batches(
            content.whole_rows(), lambda row: sum(array.size for array in row.arrays), _GROUP_NUMBERS
        ):
            cells = [pa.array([row.n for row in rows]), pa.array([row.id for row in rows], pa.string())]
            cells.append(pa.array([row.length for row in rows]))
            for arrays in zip(*(row.arrays for row in rows), strict=True):
                lists = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(arrays).reshape(-1)), layout.dim)
                if layout.is_per_residue:
                    borders = np.cumsum([0, *(row.length for row in rows)])
                    lists = pa.LargeListArray.from_arrays(pa.array(borders, pa.int64()), lists)
                cells.append(lists)
            writer.write_table(pa.table(cells, schema=schema), len(rows))


def _stage_h5(content: PartialFile, out: Path) -> Path:
    """Write an HDF5 file next to `out`, which the library must be able to read from as well."""
    partial = durable.staging_name(out)
    try:
        with durable.named(partial):
            partial.unlink(missing_ok=True)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                _write_h5(content, descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    return partial


def _write_h5(content: PartialFile, descriptor: int) -> None:
    import h5py

    stream = _H5Stream(descriptor)
    with h5py.File(stream, "w") as file:
        file.attrs[METADATA] = _text(content.metadata)
        ids = file.create_dataset("id", (content.rows,), h5py.string_dtype())
        _fill_h5(ids, ([name for _, _, name in group] for group in _groups(content.heads())))
        for name, array in _arrays(content).items():
            _fill_h5(file.create_dataset(name, array.shape, array.dtype), _rows_of(array))
            stream.check()
    stream.check()


class _H5Stream(io.RawIOBase):
    """What the HDF5 library writes to. It ends the process when a write fails as it closes a file (seen with 2.0), so
    it is never shown that: the first failure is kept, and raised by `check`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._position = descriptor, 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise what a write failed with."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            if self._error is None:
                durable.write_at(self._descriptor, bytes(data), self._position)
        except OSError as error:
            self._error = error
        self._position += size
        return size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = os.pread(self._descriptor, len(view), self._position)
        # What could not be written is zero, as in a hole of the file.
        view[:] = data.ljust(len(view), b"\0")
        self._position += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        end = self._position if size is None else size
        try:
            if self._error is None:
                os.ftruncate(self._descriptor, end)
        except OSError as error:
            self._error = error
        return end

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = offset + (os.fstat(self._descriptor).st_size if start is None else start)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _rows_of(array: _Array) -> Iterator[Any]:
    for piece in gathered(array.pieces()):
        yield np.frombuffer(piece, array.dtype).reshape(-1, *array.shape[1:])


def _fill_h5(rows: Any, parts: Iterable[Any]) -> None:
    start = 0
    for part in parts:
        rows[start : start + len(part)] = part
        start += len(part)
