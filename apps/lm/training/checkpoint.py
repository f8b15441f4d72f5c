"""Checkpoints that survive kills, full disks and power loss, and that are verified before they are believed.

A step is a directory `step-<N>` of `model.safetensors`, `trainer.safetensors`, `config.json` and `manifest.json` (size
and SHA-256 of each other file). It is written inside of `.tmp-<N>`, which nobody else can enter, every file and the
directory synced, then renamed to where it belongs, then the run directory synced: at any moment a run directory holds
whole steps only. There is no "latest" file to go stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.errors import CheckpointError, MissingFileError
from protperf.lm.training import durable

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
FILES = ("config.json", "model.safetensors", "trainer.safetensors")
_MOST_HEADER, _MOST_TENSORS, _MOST_JSON = 8 << 20, 20_000, 8 << 20
_ITEM_SIZES = {"F64": 8, "F32": 4, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_NAME = re.compile(r"[A-Za-z0-9._]{1,256}\Z")
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,11})\Z")


@dataclass(frozen=True, slots=True)
class Step:
    """A verified step of a run: its directory, number and manifest."""

    path: Path
    number: int
    manifest: dict[str, Any]


def save(
    run: Path,
    number: int,
    config: Mapping[str, Any],
    model: Mapping[str, torch.Tensor],
    trainer: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
) -> Path:
    """Write step `number`; returns its directory. An error leaves every earlier step as it was.

    Raises:
        CheckpointError: naming the file and the system's reason.
    """
    from safetensors.torch import save as tensors_to_bytes

    contents = {
        "config.json": _json(config),
        "model.safetensors": tensors_to_bytes({k: v.contiguous() for k, v in model.items()}),
        "trainer.safetensors": tensors_to_bytes({k: v.contiguous() for k, v in trainer.items()}),
    }
    files = {n: {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in contents.items()}
    contents[MANIFEST] = _json({**facts, "step": number, "files": files})
    final, partial = run / f"step-{number}", run / f".tmp-{number}"
    try:
        _publish(final, partial, contents)
    except OSError as error:
        with contextlib.suppress(OSError):
            durable.remove(partial)
        reason = f"cannot save step {number}: {error.strerror or error}"
        raise CheckpointError(error.errno, reason, os.fspath(error.filename or final)) from error
    return final


def _publish(final: Path, partial: Path, contents: Mapping[str, bytes]) -> None:
    """Put a directory of files in its place, whole or not at all."""
    durable.remove(partial)
    with durable.named(partial):
        partial.mkdir(mode=0o700)
        # Made as any directory is, so that umask, inherited group and access lists are what the user expects.
        whole = partial / final.name
        whole.mkdir()
    for name, data in contents.items():
        durable.write_file(whole / name, data)
    durable.sync_directory(whole)
    replaced = final.with_name(final.name.replace("step", ".old", 1))
    with durable.named(final):
        if final.exists():
            durable.remove(replaced)
            os.rename(final, replaced)
        try:
            os.rename(whole, final)
        except OSError:
            if replaced.exists():
                os.rename(replaced, final)
            raise
    durable.sync_directory(final.parent)
    # What is left over costs space and no more; the next start removes it too.
    for leftover in (partial, replaced):
        with contextlib.suppress(OSError):
            durable.remove(leftover)


def steps(run: Path) -> list[int]:
    """Numbers of the steps of a run directory, newest first, unverified."""
    try:
        names = os.listdir(run)
    except OSError as error:
        raise CheckpointError(error.errno, error.strerror or str(error), os.fspath(run)) from error
    return sorted((int(m[1]) for m in map(_STEP.match, names) if m), reverse=True)


def verify(path: Path) -> Step:
    """Check every file of a step against its manifest.

    Raises:
        CheckpointError: naming the file that is missing, cut, changed or hostile.
    """
    match = _STEP.match(path.name)
    manifest = _read_json(path / MANIFEST)
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != set(FILES):
        raise _broken(path / MANIFEST, "does not list the files of a step")
    if match and manifest.get("step") != int(match[1]):
        raise _broken(path / MANIFEST, f"is of step {manifest.get('step')}")
    for name in FILES:
        entry = files[name]
        if not isinstance(entry, dict) or not isinstance(entry.get("size"), int):
            raise _broken(path / MANIFEST, f"has no size of {name}")
        _verify_file(path / name, entry["size"], entry.get("sha256"))
    number = manifest.get("step")
    if isinstance(number, bool) or not isinstance(number, int):
        raise _broken(path / MANIFEST, "has no step number")
    return Step(path, number, manifest)


def find(path: str | os.PathLike[str]) -> Step:
    """The verified step that reading commands take: the best by validation of a run, or the step named.

    Raises:
        MissingFileError: no such directory; CheckpointError: a damaged file, named.
    """
    place = Path(path)
    if not place.exists():
        raise MissingFileError(2, "no such run directory", os.fspath(path))
    if (place / MANIFEST).exists() or _STEP.match(place.name):
        return verify(place)
    numbers = steps(place)
    if not numbers:
        raise CheckpointError(None, "holds no checkpoint; train one with protperf train", os.fspath(path))
    newest = verify(place / f"step-{numbers[0]}")
    progress = newest.manifest.get("progress")
    best = progress.get("best_step") if isinstance(progress, dict) else None
    return verify(place / f"step-{best}") if best in numbers and best != newest.number else newest


def read_config(step: Step) -> dict[str, Any]:
    """The configuration of a verified step."""
    return _read_json(step.path / "config.json")


def read_tensors(path: Path, expected: Mapping[str, tuple[str, tuple[int, ...]]] | None) -> dict[str, torch.Tensor]:
    """Tensors of a file, after its header was checked against what is expected (name to type and shape).

    Raises:
        CheckpointError: naming the file.
    """
    from safetensors.torch import load as bytes_to_tensors

    header = read_header(path)
    if expected is not None:
        for name in sorted(set(expected) ^ set(header)):
            raise _broken(path, f"tensor {name} is {'missing' if name in expected else 'not expected'}")
        for name, want in expected.items():
            if header[name] != want:
                raise _broken(path, f"tensor {name} is {header[name]}, the configuration needs {want}")
    with _opened(path) as stream:
        return bytes_to_tensors(stream.read())


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor of a safetensors file, checked in full before any of it is allocated.

    Raises:
        CheckpointError: a header that is too large, not JSON, or whose sizes do not fit the file exactly.
    """
    with _opened(path) as stream:
        total = os.fstat(stream.fileno()).st_size
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise _broken(path, "is too short for a safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MOST_HEADER, total - 8):
            raise _broken(path, f"announces a header of {length} bytes in a file of {total}")
        header = _parse(path, stream.read(length))
    header.pop("__metadata__", None)
    if len(header) > _MOST_TENSORS:
        raise _broken(path, f"announces {len(header)} tensors")
    found, ends = {}, []
    for name, entry in header.items():
        kind, shape, begin, end = _entry(path, name, entry)
        numel = 1
        for size in shape:
            numel *= size
        if end - begin != numel * _ITEM_SIZES[kind]:
            raise _broken(path, f"tensor {name} does not have the size of its shape")
        ends.append((begin, end))
        found[name] = (kind, shape)
    position = 0
    for begin, end in sorted(ends):
        if begin != position:
            raise _broken(path, "has tensors that overlap or leave gaps")
        position = end
    if position != total - 8 - length:
        raise _broken(path, f"has {total - 8 - length} bytes of data, its tensors need {position}")
    return found


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62

    if not _NAME.match(name) or not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, "has a malformed tensor entry")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in _ITEM_SIZES:
        raise _broken(path, f"tensor {name} has a type that checkpoints do not use")
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(whole, shape)):
        raise _broken(path, f"tensor {name} has a malformed shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(whole, offsets)) or offsets[0] > offsets[1]:
        raise _broken(path, f"tensor {name} has malformed offsets")
    return kind, tuple(shape), offsets[0], offsets[1]


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError(None, what, os.fspath(path))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(error.errno, error.strerror or str(error), os.fspath(path)) from error
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def _verify_file(path: Path, size: int, sha256: Any) -> None:
    with _opened(path) as stream:
        found = os.fstat(stream.fileno()).st_size
        if found != size:
            raise _broken(path, f"has {found} bytes, the manifest says {size}")
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != sha256:
        raise _broken(path, "does not have the contents that were saved (SHA-256 differs)")


def _read_json(path: Path) -> dict[str, Any]:
    with _opened(path) as stream:
        data = stream.read(_MOST_JSON + 1)
    if len(data) > _MOST_JSON:
        raise _broken(path, "is too large")
    return _parse(path, data)


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key stands twice")
        return table

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    try:
        value = json.loads(data, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"is not valid JSON: {str(error)[:80]}") from error
    if not isinstance(value, dict):
        raise _broken(path, "is not a table")
    return value
