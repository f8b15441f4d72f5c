"""Models that ship with the package, each a step by name: `builtin:nano`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from protperf.errors import MissingFileError

PREFIX = "builtin:"
_FOLDER = Path(__file__).parents[1] / "builtin"


def names() -> list[str]:
    """The models that there are, as they are named on the command line."""
    return sorted(PREFIX + path.name for path in _FOLDER.iterdir() if path.is_dir() and path.name[0] != "_")


def resolved(path: str | os.PathLike[str]) -> Path:
    """The directory of a model that ships; another path is the one it was.

    Raises:
        MissingFileError: there is no such model.
    """
    text = os.fspath(path)
    if not text.startswith(PREFIX):
        return Path(path)
    if text not in names():
        raise MissingFileError(errno.ENOENT, f"no such model ships with protperf; there is {', '.join(names())}", text)
    return _FOLDER / text.removeprefix(PREFIX)


def named(path: Path) -> str:
    """The name of a model that ships, or the path of another one."""
    return PREFIX + path.name if path.parent == _FOLDER else str(path)
