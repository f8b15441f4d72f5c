"""What can be asked of a conversion. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from protperf.lm.options import REQUIRED, check, option

TARGETS = ("hf", "safetensors", "model")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """A model, and what it becomes."""

    model: Path = option(REQUIRED, "Run directory, or one step of it.", positional=True, unit="MODEL")
    to: str = option(
        REQUIRED,
        "hf: a folder that the library transformers loads; safetensors: one file of weights with the configuration in "
        "its metadata; model: a model for protperf, without what only --resume needs: half the size.",
        choices=TARGETS,
    )
    out: Path = option(REQUIRED, "Folder or file to write; it must not exist.", short="-o", unit="PATH")

    def __post_init__(self) -> None:
        check(self)
