"""What can be asked of a baseline. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.options import REQUIRED, check, option
from protperf.lm.shared_options import residues_option
from protperf.message import Argument, Message

OF_SEQUENCES = ("unigram", "ngram")
"""Kinds that are counted from sequences, and read left to right."""
OF_ALIGNMENTS = ("site", "pairwise")
"""Kinds that are counted from an alignment, and know the columns of a family."""
KINDS = (*OF_SEQUENCES, *OF_ALIGNMENTS, "blosum")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BaselineOptions:
    """What is counted, and where the model goes."""

    kind: str = option(
        REQUIRED,
        "unigram: residue frequencies; ngram: each residue given those just before it; site: residue frequencies per "
        "column of an alignment; pairwise: columns and pairs of columns; blosum: BLOSUM62, from no data.",
        choices=KINDS,
    )
    order: int = option(5, "Residues of an n-gram.", least=1, most=5)
    theta: float = option(
        0.8, "Identity at which rows of an alignment are relatives and share one weight.", least=0.01, most=1.0
    )
    residues: str = residues_option()
    out: Path = option(REQUIRED, "Directory of the model.", short="-o", unit="DIR")
    force: bool = option(False, "Replace a baseline that is there.")

    def __post_init__(self) -> None:
        check(self)

    def check_input(self, paths: list[str]) -> None:
        """Refuse files that this kind has no use for, or too few of them.

        Raises:
            ConfigError: naming what it takes.
        """
        kind = Argument("kind", self.kind)
        if self.kind == "blosum" and paths:
            raise ConfigError(Message("{kind} takes no file; leave {path} out", kind=kind, path=paths[0]))
        if self.kind in OF_ALIGNMENTS and len(paths) != 1:
            raise ConfigError(Message("{kind} takes one alignment; {count} given", kind=kind, count=len(paths)))
        if self.kind in OF_SEQUENCES and not paths:
            raise ConfigError(Message("{kind} takes sequence files; none given", kind=kind))

    def to_mapping(self) -> dict[str, Any]:
        """What decides the model, by name."""
        names = {"ngram": ("order", "residues"), "unigram": ("residues",)}.get(self.kind, ())
        names = ("theta",) if self.kind in OF_ALIGNMENTS else names
        return {name: getattr(self, name) for name in names}
