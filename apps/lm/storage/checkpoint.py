"""Checkpoints that survive kills, full disks and power loss, and that are verified before they are used.

A step is a directory `step-<N>` with `model.safetensors`, `trainer.safetensors`, `config.json` and `manifest.json`
(size and SHA-256 of each other file). It is written inside `.tmp-<N>`, which no other user can enter; each file and the
directory are synced; then it is renamed to its place and the run directory is synced. So a run directory holds only
whole steps at any moment. There is no "latest" file that could be out of date.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from protperf.errors import CheckpointError, MissingFileError
from protperf.lm.storage import builtin, durable
from protperf.lm.storage.plain_file import broken, opened, read_sealed, seal, short, to_json

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
FILES = ("config.json", MODEL, "trainer.safetensors")
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,11})\Z")
_MAX_ATTEMPTS, _PAUSE_S = 20, 0.001
"""How often a reader looks again after the step that it was reading has been pruned or replaced, and how soon."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Step:
    """A verified step of a run: its directory, number and manifest."""

    path: Path
    number: int
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Its directory, or `builtin:nano`."""
        return builtin.named(self.path)


def save(
    run: Path,
    number: int,
    config: Mapping[str, Any],
    model: Mapping[str, torch.Tensor],
    trainer: Mapping[str, torch.Tensor],
    facts: Callable[[], Mapping[str, Any]],
) -> Path:
    """Write step `number` and return its directory. After an error every earlier step is as it was.

    Args:
        facts: gives what the manifest says besides the digests. It is called once the tensors are on disk, so that it
            can account for the time that the save took.

    Raises:
        CheckpointError: names the file and the reason that the system gave.
    """
    from safetensors.torch import save as tensors_to_bytes

    contents = {
        "config.json": to_json(config),
        "model.safetensors": tensors_to_bytes({k: v.contiguous() for k, v in model.items()}),
        "trainer.safetensors": tensors_to_bytes({k: v.contiguous() for k, v in trainer.items()}),
    }
    files = {name: entry_of(data) for name, data in contents.items()}
    final, partial = run / f"step-{number}", run / f".tmp-{number}"
    try:
        _publish(final, partial, contents, lambda: seal({**facts(), "step": number, "files": files}))
    except OSError as error:
        with contextlib.suppress(OSError):
            durable.remove(partial)
        reason = f"cannot save step {number}: {error.strerror or error}"
        raise CheckpointError(error.errno, reason, os.fspath(error.filename or final)) from error
    return final


def _publish(final: Path, partial: Path, contents: Mapping[str, bytes], manifest: Callable[[], bytes]) -> None:
    """Put a directory of files and their manifest in its place, as a whole or not at all."""
    durable.remove(partial)
    with durable.named(partial):
        partial.mkdir(mode=0o700)
        # Created like any directory, so that umask, inherited group and access lists apply as the user expects.
        whole = partial / final.name
        whole.mkdir()
    for name, data in contents.items():
        durable.write_file(whole / name, data)
    durable.write_file(whole / MANIFEST, manifest())
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
    # What remains only costs space, and the next start removes it as well.
    for leftover in (partial, replaced):
        with contextlib.suppress(OSError):
            durable.remove(leftover)


def steps(run: Path) -> list[int]:
    """Numbers of the steps in a run directory, newest first, not verified."""
    try:
        names = os.listdir(run)
    except OSError as error:
        raise CheckpointError(error.errno, error.strerror or str(error), os.fspath(run)) from error
    return sorted((int(m[1]) for m in map(_STEP.match, names) if m), reverse=True)


def entry_of(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def verify(path: Path, hashed: Collection[str] = FILES) -> Step:
    """Check every file of a step against its manifest, and the manifest against its own seal.

    Args:
        hashed: files whose contents are compared; of the others only the size is.

    Raises:
        CheckpointError: names the file that is missing, truncated, changed or malformed.
    """
    step = _described(path)
    _verify_files(step, hashed)
    return step


def _described(path: Path) -> Step:
    """A step by its sealed manifest; its files are not looked at."""
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
        check_entry(name, files[name], path / MANIFEST)
    return Step(path, number, manifest)


def _verify_files(step: Step, hashed: Collection[str]) -> None:
    for name in FILES:
        verify_file(step.path / name, step.manifest["files"][name], contents=name in hashed)


def check_entry(name: str, entry: Any, manifest: Path) -> None:
    """Check the form of what a manifest says of a file.

    Raises:
        CheckpointError: it is not a size and a hash.
    """
    if not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
        raise broken(manifest, f"has no size and SHA-256 of {name}")


def verify_file(path: Path, entry: dict[str, Any], *, contents: bool = True) -> None:
    """Check a file against its entry in a manifest: its size, and its contents unless another reader does.

    Raises:
        CheckpointError: it is another file, or not there.
    """
    with opened(path) as stream:
        found = os.fstat(stream.fileno()).st_size
        if found != entry["size"]:
            raise broken(path, f"has {found} bytes, the manifest says {short(entry['size'])}")
        if contents and hashlib.file_digest(stream, "sha256").hexdigest() != entry["sha256"]:
            raise broken(path, "does not have the contents that were saved (SHA-256 differs)")


def find(path: str | os.PathLike[str]) -> Step:
    """The verified step that reading commands take: the best by validation of a run, or the step that is named.

    Raises:
        MissingFileError: no such directory; CheckpointError: a damaged file, named.
    """
    return read(path, lambda step: step)


def read(path: str | os.PathLike[str], use: Callable[[Step], T], hashed: Collection[str] = FILES) -> T:
    """What `use` makes of the verified step that reading commands take; `builtin:nano` ships with the package.

    A training may prune or replace steps of the run at the same time. If the step disappears while it is verified or
    used, the run is looked at again, and `use` is called with the step that is the best by then.

    Args:
        hashed: files of that step whose contents are compared before; `use` compares the others, which it reads.

    Raises:
        MissingFileError: no such directory; CheckpointError: a damaged file, named.
    """
    place = builtin.resolved(path)
    if _is_step(place):
        return use(verify(place, hashed))
    for _ in range(_MAX_ATTEMPTS - 1):
        chosen: list[tuple[Path, object]] = []
        try:
            return use(_best(place, chosen, hashed))
        except CheckpointError:
            # A step is renamed before its files are removed or replaced, so one that is unchanged is really at fault.
            if chosen and all(_identity(step) == identity for step, identity in chosen):
                raise
            if not chosen and not any(name.startswith(".old-") for name in os.listdir(place)):
                raise
        time.sleep(_PAUSE_S)
    return use(_best(place, [], hashed))


def _is_step(place: Path) -> bool:
    """Whether a step is named rather than a run.

    Raises:
        MissingFileError: there is neither; CheckpointError: it cannot be read, or is a file.
    """
    try:
        os.stat(place)
        named = _STEP.match(place.name) is not None or os.path.lexists(place / MANIFEST)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise CheckpointError(error.errno, error.strerror or str(error), os.fspath(place)) from error
        raise MissingFileError(errno.ENOENT, "no such run directory", os.fspath(place)) from error
    if not place.is_dir():
        raise CheckpointError(
            None, "is a file, not a model; name the run directory before any other file", os.fspath(place)
        )
    return named


def _identity(step: Path) -> object:
    """What distinguishes a directory from any that takes its place; None if there is none."""
    try:
        status = os.stat(step)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _best(run: Path, chosen: list[tuple[Path, object]], hashed: Collection[str]) -> Step:
    """The best step of a run by validation, verified; each step that is looked at is added to `chosen`."""
    numbers = steps(run)
    if not numbers:
        raise CheckpointError(None, "holds no checkpoint; train one with protperf train", os.fspath(run))
    step = run / f"step-{numbers[0]}"
    chosen.append((step, _identity(step)))
    newest = _described(step)
    progress = newest.manifest.get("progress")
    best = progress.get("best_step") if isinstance(progress, dict) else None
    if type(best) is not int or best not in numbers[1:]:
        _verify_files(newest, hashed)
        return newest
    _verify_files(newest, FILES)
    step = run / f"step-{best}"
    chosen.append((step, _identity(step)))
    return verify(step, hashed)
