"""Where a run comes from: what was typed, when, and how related its two parts are. Every checkpoint keeps it.

Nothing is added to what the user typed: no directory, no name of a machine or a person.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from protperf.lm.data.hold_out import HoldOut
from protperf.lm.storage.manifest import MAX_ORIGIN
from protperf.lm.training.leakage import Leakage

IN_PYTHON = "protperf.lm.train"
"""The command of a run that a program started."""
_MAX_NAMED = 16
"""Files that are named; a shell may give thousands."""


def origin(
    command: str,
    paths: Sequence[str | os.PathLike[str]],
    validation: str,
    leakage: Leakage | None,
    init: str | None = None,
) -> dict[str, Any]:
    """The facts as a manifest keeps them: text, and counts by name.

    Args:
        paths: the sequence files, as they were typed.
        validation: what the run is validated on, in words.
        leakage: relatives in the training of what it is validated on, if they were looked for.
        init: the checkpoint whose weights it started with, in words.
    """
    named = [os.fspath(path) for path in paths[:_MAX_NAMED]]
    more = [f"and {len(paths) - _MAX_NAMED} more"] if len(paths) > _MAX_NAMED else []
    return {
        "command": _plain(command),
        "data": _plain(", ".join([*named, *more])),
        **({} if init is None else {"init": _plain(init)}),
        "validation": _plain(validation),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "overlap": None if leakage is None else leakage.facts(),
    }


def described(parts: HoldOut, validate: str | os.PathLike[str] | None) -> str:
    """What a run is validated on, in words."""
    if validate is not None:
        return os.fspath(validate)
    if not len(parts.held):
        return "none"
    count = f"{len(parts.held)} held-out sequences"
    if parts.identity is None:
        return f"{count}, chosen at random"
    return f"{count}, {parts.clusters} whole clusters of relatives at {parts.identity:.0%} identity"


def _plain(text: str) -> str:
    """Text on one line that moves no cursor, of a length that a manifest has room for."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= MAX_ORIGIN else f"{shown[: MAX_ORIGIN - 3]}..."
