"""Checkpoints that survive kills, full disks and power loss, and that are verified before they are believed.

A step is a directory `step-<N>` of `model.safetensors`, `trainer.safetensors`, `config.json` and `manifest.json` (size
and SHA-256 of each other file). It is written inside of `.tmp-<N>`, which nobody else can enter, every file and the
directory synced, then renamed to where it belongs, then the run directory synced: at any moment a run directory holds
whole steps only. There is no "latest" file to go stale.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.errors import CheckpointError, MissingFileError
from protperf.lm.training import durable
from protperf.lm.training.plain_file import broken, opened, read_sealed, seal, short, to_json

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
FILES = ("config.json", "model.safetensors", "trainer.safetensors")
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
        "config.json": to_json(config),
        "model.safetensors": tensors_to_bytes({k: v.contiguous() for k, v in model.items()}),
        "trainer.safetensors": tensors_to_bytes({k: v.contiguous() for k, v in trainer.items()}),
    }
    files = {n: {"size": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in contents.items()}
    contents[MANIFEST] = seal({**facts, "step": number, "files": files})
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
    """Check every file of a step against its manifest, and the manifest against itself.

    Raises:
        CheckpointError: naming the file that is missing, cut, changed or hostile.
    """
    match = _STEP.match(path.name)
    manifest = read_sealed(path / MANIFEST)
    number, files = manifest.get("step"), manifest.get("files")
    if type(number) is not int or number < 0:
        raise broken(path / MANIFEST, "has no step number")
    if match and number != int(match[1]):
        raise broken(path / MANIFEST, f"is of step {number}")
    if not isinstance(files, dict) or set(files) != set(FILES):
        raise broken(path / MANIFEST, "does not list the files of a step")
    for name in FILES:
        _verify_file(path / name, files[name])
    return Step(path, number, manifest)


def _verify_file(path: Path, entry: Any) -> None:
    if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
        raise broken(path.with_name(MANIFEST), f"has no size and SHA-256 of {path.name}")
    with opened(path) as stream:
        found = os.fstat(stream.fileno()).st_size
        if found != entry["size"]:
            raise broken(path, f"has {found} bytes, the manifest says {short(entry['size'])}")
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != entry["sha256"]:
        raise broken(path, "does not have the contents that were saved (SHA-256 differs)")


def find(path: str | os.PathLike[str]) -> Step:
    """The verified step that reading commands take: the best by validation of a run, or the step named.

    Raises:
        MissingFileError: no such directory; CheckpointError: a damaged file, named.
    """
    place = Path(path)
    try:
        os.stat(place)
        named = _STEP.match(place.name) is not None or os.path.lexists(place / MANIFEST)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise CheckpointError(error.errno, error.strerror or str(error), os.fspath(path)) from error
        raise MissingFileError(errno.ENOENT, "no such run directory", os.fspath(path)) from error
    if not place.is_dir():
        raise CheckpointError(None, "is a file and no model; name the run directory, before any other file", str(place))
    if named:
        return verify(place)
    numbers = steps(place)
    if not numbers:
        raise CheckpointError(None, "holds no checkpoint; train one with protperf train", os.fspath(path))
    newest = verify(place / f"step-{numbers[0]}")
    progress = newest.manifest.get("progress")
    best = progress.get("best_step") if isinstance(progress, dict) else None
    return verify(place / f"step-{best}") if type(best) is int and best in numbers[1:] else newest
