"""What a file that an option names may be. `protperf info` loads no other option of a reading command."""

from __future__ import annotations

from pathlib import Path

from protperf.errors import ConfigError
from protperf.message import Argument, Message

MODEL = "Run directory, one step of it, builtin:nano, an ESM-2 folder, or a baseline."
"""What the help says of a model."""
PICTURES = (".png", ".svg")
"""Formats of a picture, by the suffix of its file."""
PAGES = (".html", ".htm")
"""Formats of a report."""
LISTS = (".tsv", ".csv", ".jsonl")
"""Formats of a list of rejected records."""


def check_suffix(name: str, path: Path | None, known: tuple[str, ...]) -> None:
    """Refuse a file whose suffix promises another format than those known.

    Raises:
        ConfigError: naming the argument.
    """
    if path is not None and path.suffix.lower() not in known:
        text = "{name} is {path}; name a file that ends in one of {known}"
        raise ConfigError(Message(text, name=Argument(name), path=path, known=", ".join(known)))
