"""Pictures by matplotlib, which is imported when one is drawn: how one is written.

The same figure makes the same file: it holds no date, and the ids of an SVG are not random.
"""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from protperf.errors import MissingPackageError
from protperf.lm.storage import durable

_DPI = 150


def require(what: str) -> None:
    """Check for matplotlib before any work is done.

    Args:
        what: is to be drawn, in words.

    Raises:
        MissingPackageError: it is not installed, or cannot be imported.
    """
    try:
        import_module("matplotlib.figure")
    except ImportError as error:
        text = f"{what} needs matplotlib ({error}); install it with pip install matplotlib"
        raise MissingPackageError(text) from error


def literal(text: str) -> str:
    """Text of a user in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG or SVG, by the file's suffix."""
    kind = path.suffix.lower().removeprefix(".")
    durable.replace_file(path, lambda stream: _write(figure, kind, stream))


def svg(figure: Any) -> str:
    """A figure as an element of a page."""
    stream = io.BytesIO()
    _write(figure, "svg", stream)
    text = stream.getvalue().decode()
    return text[text.index("<svg") :]


def _write(figure: Any, kind: str, stream: BinaryIO) -> None:
    metadata = {"Date": None} if kind == "svg" else {}
    with import_module("matplotlib").rc_context({"svg.hashsalt": "protperf"}):
        figure.savefig(stream, format=kind, dpi=_DPI, metadata=metadata)
