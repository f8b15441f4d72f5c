"""Tensor files (safetensors) from untrusted sources.

The whole header is checked, also against the tensors that are expected, before any memory is allocated: names, types,
shapes, and offsets that fill the file exactly. Then each tensor is read into its own memory from the same open file.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.lm.storage.plain_file import broken, opened, parse_table, short

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor by name."""

_MAX_HEADER_BYTES, _MAX_TENSORS, _MAX_AXES = 8 << 20, 20_000, 8
_CHUNK_BYTES = 1 << 22
_ITEM_SIZES = {"F64": 8, "F32": 4, "I64": 8}
_NAME = re.compile(r"[A-Za-z0-9._]{1,256}\Z")
_ENTRY = {"dtype", "shape", "data_offsets"}


def type_name(dtype: torch.dtype) -> str:
    """The name of a torch type in tensor files."""
    import torch

    return {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}[dtype]


def read_layout(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a file. The data is not read.

    Raises:
        CheckpointError: naming the file; its header is too large, malformed, or does not account for every byte.
    """
    with opened(path) as stream:
        return {name: (kind, shape) for name, (kind, shape, _, _) in _read_header(path, stream)[0].items()}


def read_tensors(path: Path, expected: Layout | None) -> dict[str, torch.Tensor]:
    """`read_arrays` as tensors of torch."""
    import torch

    return {name: torch.from_numpy(array) for name, array in read_arrays(path, expected).items()}


def read_arrays(path: Path, expected: Layout | None) -> dict[str, NDArray[Any]]:
    """The tensors of a file, which must be exactly those expected; None accepts any.

    Raises:
        CheckpointError: as for `read_layout`; or a tensor is missing, has another type or shape, or is not expected.
    """
    import numpy as np

    types = {"F32": np.float32, "F64": np.float64, "I64": np.int64}
    with opened(path) as stream:
        header, start = _read_header(path, stream)
        if expected is not None:
            _compare(path, {name: entry[:2] for name, entry in header.items()}, expected)
        arrays = {}
        for name, (kind, shape, begin, end) in header.items():
            arrays[name] = np.empty(shape, types[kind])
            stream.seek(start + begin)
            if stream.readinto(arrays[name].reshape(-1).view("u1").data) != end - begin:
                raise broken(path, f"ends within tensor {name}")
    return arrays


def first_not_finite(path: Path) -> str | None:
    """The name of a tensor of a file that holds a number that is not finite. Reads in bounded memory.

    Raises:
        CheckpointError: as for `read_layout`, or the file ends early.
    """
    import numpy as np

    types: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
    with opened(path) as stream:
        header, start = _read_header(path, stream)
        for name, (kind, _, begin, end) in header.items():
            if kind not in types:
                continue
            stream.seek(start + begin)
            while begin < end:
                data = stream.read(min(_CHUNK_BYTES, end - begin))
                if not data or len(data) % types[kind].itemsize:
                    raise broken(path, f"ends within tensor {name}")
                if not np.isfinite(np.frombuffer(data, types[kind])).all():
                    return name
                begin += len(data)
    return None


def check_layout(path: Path, expected: Layout) -> None:
    """Check from the header alone that a file holds exactly the tensors expected.

    Raises:
        CheckpointError: as for `read_tensors`.
    """
    _compare(path, read_layout(path), expected)


def _compare(path: Path, found: Layout, expected: Layout) -> None:
    for name in sorted(set(expected) ^ set(found)):
        raise broken(path, f"tensor {name} is {'missing' if name in expected else 'not expected'}")
    for name, entry in expected.items():
        if found[name] != entry:
            raise broken(path, f"tensor {name} is {_text(found[name])}, the configuration needs {_text(entry)}")


def _text(entry: tuple[str, tuple[int, ...]]) -> str:
    return f"{entry[0]} {list(entry[1])}"


def _read_header(path: Path, stream: BufferedReader) -> tuple[dict[str, tuple[str, tuple[int, ...], int, int]], int]:
    """Type, shape, begin and end of each tensor, and the position of the data."""
    total = os.fstat(stream.fileno()).st_size
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise broken(path, "is too short for a tensor file")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_MAX_HEADER_BYTES, total - 8):
        raise broken(path, f"announces a header of {length} bytes in a file of {total}")
    header = _parse(path, stream.read(length))
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise broken(path, f"has an overlap or a gap before tensor {name}")
        position = end
    if position != total - 8 - length:
        raise broken(path, f"has {total - 8 - length} bytes of data, its tensors need {position}")
    return entries, 8 + length


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    # Counted before parsing: an empty list takes two bytes in the file and about seventy in memory.
    tables, values = data.count(b"{"), data.count(b",") + data.count(b"[")
    if not data.isascii() or tables > _MAX_TENSORS + 2 or values > 16 * (_MAX_TENSORS + 2):
        raise broken(path, f"has a header that is not one of at most {_MAX_TENSORS} tensors")
    header = parse_table(path, data)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise broken(path, "has malformed metadata")
    if len(header) > _MAX_TENSORS:
        raise broken(path, f"announces {len(header)} tensors, more than {_MAX_TENSORS}")
    return header


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not _NAME.match(name):
        raise broken(path, f"names a tensor {short(name)}")
    if not isinstance(entry, dict) or set(entry) != _ENTRY:
        raise broken(path, f"has a malformed entry of tensor {name}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _ITEM_SIZES:
        raise broken(path, f"tensor {name} is of type {short(kind)}, which checkpoints do not use")
    if not _whole(shape) or len(shape) > _MAX_AXES:
        raise broken(path, f"tensor {name} has a malformed shape {short(shape)}")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(path, f"tensor {name} has malformed offsets {short(offsets)}")
    # Exact for any sizes: integers of Python do not overflow.
    size = _ITEM_SIZES[kind]
    for axis in shape:
        size *= axis
    if offsets[1] - offsets[0] != size:
        raise broken(path, f"tensor {name} has {offsets[1] - offsets[0]} bytes, its shape {short(shape)} needs {size}")
    return kind, tuple(shape), offsets[0], offsets[1]


def _whole(values: Any) -> bool:
    """Whether the value is a list of sizes."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)
