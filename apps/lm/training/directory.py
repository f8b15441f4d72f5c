"""What belongs to a run directory, who may write to it, and what is removed from it: never what someone else put there.

A run owns `config.toml` and `metrics.jsonl` that look like its own, `.lock`, whole steps `step-<N>`, and three kinds of
leftovers: `.tmp-*` is half written, `.del-<N>` half removed, and `.old-<N>` was whole when a newer `step-<N>` was about
to take its place.
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
from protperf.lm.training import checkpoint, durable

CONFIG, METRICS, LOCK = "config.toml", "metrics.jsonl", ".lock"
_STEP = re.compile(r"step-(0|[1-9][0-9]{0,11})\Z")
_LEFTOVER = re.compile(r"\.(?:tmp-(?:config\.toml|metrics\.jsonl)|(tmp|del|old)-(0|[1-9][0-9]{0,11}))\Z")


@contextlib.contextmanager
def locked(run: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Hold a run directory, made where it is not there, for one writer.

    Raises:
        ConfigError: another process holds it; FileError: it cannot be made or written to.
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
            warn(f"warning: {run}: this file system has no locks; do not train here twice at once")
        yield
    finally:
        os.close(descriptor)


def holds_run(run: Path) -> bool:
    """Whether a run was begun here; other files do not count.

    Raises:
        CheckpointError: the directory cannot be read.
    """
    if not run.is_dir():
        return False
    return bool(checkpoint.steps(run)) or any(os.path.lexists(run / name) for name in (CONFIG, METRICS))


def stranger(run: Path) -> Path | None:
    """A visible entry of a directory that holds no run; None where there is none."""
    if not run.is_dir():
        return None
    with durable.named(run):
        return next((path for path in sorted(run.iterdir()) if not path.name.startswith(".")), None)


def recover(run: Path) -> list[str]:
    """Put in order what an interrupted save or removal left; returns warnings, never raises.

    A step that was moved aside comes back if its successor never took its place.
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
    """Remove whole steps that are not kept, and leftovers; returns warnings, never raises.

    A step to which someone added a file stays.
    """

    def drop(path: Path) -> None:
        match = _STEP.match(path.name)
        if match is not None and int(match[1]) not in keep and _is_ours(path):
            _drop(path)

    return recover(run) + _each(run, drop)


def _drop(step: Path) -> None:
    """Remove a step: no longer one at once, then file by file."""
    hidden = step.with_name(step.name.replace("step", ".del", 1))
    durable.remove(hidden)
    with durable.named(step):
        os.rename(step, hidden)
    durable.remove(hidden)


def clear(run: Path) -> None:
    """Remove what an earlier run left: its steps, metrics and configuration.

    Raises:
        ConfigError: something of the same name that no run made, before anything is removed; FileError.
    """
    steps = [run / f"step-{number}" for number in checkpoint.steps(run)]
    strangers = [path for path in steps if not _is_ours(path)]
    strangers += [run / name for name, ours in ((CONFIG, _is_config), (METRICS, _is_metrics)) if not ours(run / name)]
    if strangers:
        raise ConfigError(f"{strangers[0]}: is not of a run alone and is not removed; choose another directory")
    # The newest goes last: whenever this is interrupted, what is left is a run that can be continued.
    for path in reversed(steps):
        _drop(path)
    for name in (METRICS, CONFIG):
        durable.remove(run / name)


def _each(run: Path, act: Callable[[Path], None]) -> list[str]:
    """Do something to each entry; a failure is a warning that names it."""
    warnings = []
    try:
        entries = sorted(run.iterdir())
    except OSError as error:
        return [f"warning: {run}: could not look for old steps: {error.strerror or error}"]
    for path in entries:
        try:
            act(path)
        except OSError as error:
            named = error.filename if error.filename is not None else path
            warnings.append(f"warning: {os.fspath(named)}: could not remove an old step: {error.strerror or error}")
    return warnings


def _is_ours(path: Path) -> bool:
    """Whether a directory, a step or what is left of one, holds files of a step and nothing else."""
    ours = {*checkpoint.FILES, checkpoint.MANIFEST, path.name.replace(".tmp", "step", 1)}
    return path.is_dir() and not path.is_symlink() and set(os.listdir(path)) <= ours


def _is_config(path: Path) -> bool:
    try:
        return {"model", "training"} <= set(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def _is_metrics(path: Path) -> bool:
    """Whether the first line is one of ours; a file cut short by a loss of power may have lost it."""
    try:
        with path.open("rb") as stream:
            line = stream.readline(4096)
        return not line.strip(b"\0") or "step" in json.loads(line)
    except FileNotFoundError:
        return True
    except (OSError, ValueError, TypeError):
        return False
