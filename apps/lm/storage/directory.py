"""What belongs to a run directory, which process may write to it, and what is removed: never a file of the user.

A run owns `config.toml`, `metrics.jsonl` and `tensorboard` if they look like those of a run, `.lock`, whole steps
`step-<N>`, and three kinds of leftovers: `.tmp-*` was being written, `.del-<N>` was being removed, and `.old-<N>` was a
whole step that a new `step-<N>` was about to replace.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from protperf.errors import ConfigError, FileError
from protperf.lm.storage import checkpoint, durable

CONFIG, METRICS, LOCK, TENSORBOARD = "config.toml", "metrics.jsonl", ".lock", "tensorboard"
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,11})\Z")
_LEFTOVER = re.compile(r"\.(?:tmp-(?:config\.toml|metrics\.jsonl)|(tmp|del|old)-(0|[1-9][0-9]{0,11}))\Z")


@contextlib.contextmanager
def locked(run: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Lock a run directory, created if it is missing, for one writer.

    Raises:
        ConfigError: another process has locked it; FileError: it cannot be created or written to.
    """
    durable.make_directory(run)
    with durable.named(run / LOCK):
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(run / LOCK, flags, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{run}: another process is training here; choose another directory") from error
        except OSError as error:
            if error.errno not in durable.NO_LOCKS:
                raise FileError(error.errno, error.strerror, os.fspath(run / LOCK)) from error
            warn(f"warning: {run}: this file system has no locks; do not start a second training here")
        yield
    finally:
        os.close(descriptor)


def holds_run(run: Path) -> bool:
    """Whether a run was started here; other files do not count.

    Raises:
        CheckpointError: the directory cannot be read.
    """
    if not run.is_dir():
        return False
    return bool(checkpoint.steps(run)) or any(os.path.lexists(run / name) for name in (CONFIG, METRICS))


def foreign_entry(run: Path) -> Path | None:
    """The first visible entry of a directory without a run; None if there is none."""
    if not run.is_dir():
        return None
    with durable.named(run):
        return next((path for path in sorted(run.iterdir()) if not path.name.startswith(".")), None)


def recover(run: Path) -> list[str]:
    """Clean up after an interrupted save or removal; returns warnings, never raises.

    A step that had been moved aside comes back if its replacement never arrived.
    """

    def tidy(path: Path) -> None:
        match = _LEFTOVER.match(path.name)
        if match is None or not (match[1] is None or _is_ours(path)):
            return
        final = run / f"step-{match[2]}"
        if match[1] == "old" and not os.path.lexists(final):
            os.rename(path, final)
            durable.sync_directory(run)
        else:
            durable.remove(path)

    return _each(run, tidy)


def prune(run: Path, keep: set[int]) -> list[str]:
    """Remove leftovers and whole steps that are not in `keep`; returns warnings, never raises.

    A step to which someone added a file is kept.
    """

    def drop(path: Path) -> None:
        match = _STEP.match(path.name)
        if match is not None and int(match[1]) not in keep and _is_ours(path):
            _drop(path)

    return recover(run) + _each(run, drop)


def _drop(step: Path) -> None:
    """Remove a step: renamed first, so that it stops being a step at once, then file by file."""
    hidden = step.with_name(step.name.replace("step", ".del", 1))
    durable.remove(hidden)
    with durable.named(step):
        os.rename(step, hidden)
    durable.remove(hidden)


def clear(run: Path) -> None:
    """Remove an earlier run: its steps, metrics and configuration.

    Raises:
        ConfigError: an entry with such a name was not made by a run; nothing has been removed. FileError.
    """
    steps = [run / f"step-{number}" for number in checkpoint.steps(run)]
    foreign = [path for path in steps if not _is_ours(path)]
    ours = ((CONFIG, _is_config), (METRICS, _is_metrics), (TENSORBOARD, _is_tensorboard))
    foreign += [run / name for name, is_ours in ours if not is_ours(run / name)]
    if foreign:
        raise ConfigError(f"{foreign[0]}: holds more than a run writes and is not removed; choose another directory")
    # The newest goes last: if this is interrupted, the rest is a run that can be resumed.
    for path in reversed(steps):
        _drop(path)
    for name in (TENSORBOARD, METRICS, CONFIG):
        durable.remove(run / name)


def _each(run: Path, act: Callable[[Path], None]) -> list[str]:
    """Call `act` for each entry; a failure becomes a warning that names the entry."""
    warnings = []
    try:
        entries = sorted(run.iterdir())
    except OSError as error:
        return [f"warning: {run}: cannot look for old steps: {error.strerror or error}"]
    for path in entries:
        try:
            act(path)
        except OSError as error:
            named = error.filename if error.filename is not None else path
            warnings.append(f"warning: {os.fspath(named)}: cannot remove an old step: {error.strerror or error}")
    return warnings


def _is_ours(path: Path) -> bool:
    """Whether a directory, a step or the remains of one, holds files of a step and nothing else."""
    ours = {*checkpoint.FILES, checkpoint.MANIFEST, path.name.replace(".tmp", "step", 1)}
    return path.is_dir() and not path.is_symlink() and set(os.listdir(path)) <= ours


def _is_config(path: Path) -> bool:
    try:
        return {"model", "training"} <= set(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def _is_tensorboard(path: Path) -> bool:
    """Whether a directory holds TensorBoard's files and nothing else."""
    if not os.path.lexists(path):
        return True
    names = os.listdir(path) if path.is_dir() and not path.is_symlink() else [""]
    return all(name.startswith("events.out.tfevents.") for name in names)


def _is_metrics(path: Path) -> bool:
    """Whether the first line is a line of metrics; a loss of power may have emptied it."""
    try:
        with path.open("rb") as stream:
            line = stream.readline(4096)
        return not line.strip(b"\0") or "step" in json.loads(line)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, TypeError):
        return False
