"""Tensor files (safetensors), read only after every byte of them is accounted for.

The header is checked in full, and against what is expected, before any memory is asked for: names, types, shapes, and
offsets that fill the file exactly. Then each tensor is read into its own memory, from the same open file.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.lm.training.plain_file import broken, opened, parse_table, short

if TYPE_CHECKING:
    import torch

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor by name."""

_MOST_HEADER, _MOST_TENSORS, _MOST_AXES = 8 << 20, 20_000, 8
_ITEM_SIZES = {"F64": 8, "F32": 4, "I64": 8}
_NAME = re.compile(r"[A-Za-z0-9._]{1,256}\Z")
_ENTRY = {"dtype", "shape", "data_offsets"}


def type_name(dtype: torch.dtype) -> str:
    """What a tensor file calls a type of torch."""
    import torch

    return {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}[dtype]


def read_layout(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a file. Its data is not read.

    Raises:
        CheckpointError: naming the file; its header is too large, malformed, or does not account for every byte.
    """
    with opened(path) as stream:
        return {name: (kind, shape) for name, (kind, shape, _, _) in _read_header(path, stream)[0].items()}


def read_tensors(path: Path, expected: Layout | None) -> dict[str, torch.Tensor]:
    """Tensors of a file that holds just what is expected; None takes what there is.

    Raises:
        CheckpointError: naming the file; as `read_layout`, or a tensor is missing, of another type or shape, or extra.
    """
    import torch

    types = {type_name(dtype): dtype for dtype in (torch.float32, torch.float64, torch.int64)}
    with opened(path) as stream:
        header, start = _read_header(path, stream)
        if expected is not None:
            _compare(path, {name: entry[:2] for name, entry in header.items()}, expected)
        tensors = {}
        for name, (kind, shape, begin, end) in header.items():
            tensors[name] = torch.empty(shape, dtype=types[kind])
            stream.seek(start + begin)
            if stream.readinto(tensors[name].numpy().reshape(-1).view("u1").data) != end - begin:
                raise broken(path, f"ends within tensor {name}")
    return tensors


def check_layout(path: Path, expected: Layout) -> None:
    """Refuse a file that does not hold just what is expected, from its header alone.

    Raises:
        CheckpointError: as `read_tensors`.
    """
    _compare(path, read_layout(path), expected)


def _compare(path: Path, found: Layout, expected: Layout) -> None:
    for name in sorted(set(expected) ^ set(found)):
        raise broken(path, f"tensor {name} is {'missing' if name in expected else 'not expected'}")
    for name, want in expected.items():
        if found[name] != want:
            raise broken(path, f"tensor {name} is {_text(found[name])}, the configuration needs {_text(want)}")


def _text(entry: tuple[str, tuple[int, ...]]) -> str:
    return f"{entry[0]} {list(entry[1])}"


def _read_header(path: Path, stream: BufferedReader) -> tuple[dict[str, tuple[str, tuple[int, ...], int, int]], int]:
    """Type, shape, begin and end of each tensor, and where the data starts."""
    total = os.fstat(stream.fileno()).st_size
    prefix = stream.read(8)
    if len(prefix) < 8:
        raise broken(path, "is too short for a tensor file")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(_MOST_HEADER, total - 8):
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
    # Counted before they are parsed: an empty list takes two bytes here and some seventy in memory.
    tables, values = data.count(b"{"), data.count(b",") + data.count(b"[")
    if not data.isascii() or tables > _MOST_TENSORS + 2 or values > 16 * (_MOST_TENSORS + 2):
        raise broken(path, f"has a header that is not of at most {_MOST_TENSORS} tensors")
    header = parse_table(path, data)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise broken(path, "has malformed metadata")
    if len(header) > _MOST_TENSORS:
        raise broken(path, f"announces {len(header)} tensors, more than {_MOST_TENSORS}")
    return header


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not _NAME.match(name):
        raise broken(path, f"names a tensor {short(name)}")
    if not isinstance(entry, dict) or set(entry) != _ENTRY:
        raise broken(path, f"has a malformed entry of tensor {name}")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _ITEM_SIZES:
        raise broken(path, f"tensor {name} is of type {short(kind)}, which checkpoints do not use")
    if not _whole(shape) or len(shape) > _MOST_AXES:
        raise broken(path, f"tensor {name} has a malformed shape {short(shape)}")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(path, f"tensor {name} has malformed offsets {short(offsets)}")
    # Exact whatever the sizes: a product of integers does not wrap here.
    size = _ITEM_SIZES[kind]
    for axis in shape:
        size *= axis
    if offsets[1] - offsets[0] != size:
        raise broken(path, f"tensor {name} has {offsets[1] - offsets[0]} bytes, its shape {short(shape)} needs {size}")
    return kind, tuple(shape), offsets[0], offsets[1]


def _whole(values: Any) -> bool:
    """Whether it is a list of sizes."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)
