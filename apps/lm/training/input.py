"""What a run is trained and validated on: the files that were named, and the two parts that they give."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError, DataError
from protperf.lm.data.hold_out import HoldOut, hold_out
from protperf.lm.data.store import Paths, listed, read_store
from protperf.lm.shared_options import RejectOptions
from protperf.lm.tables.rejects import RejectList
from protperf.lm.training.leakage import look
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.origin import described, origin
from protperf.message import Argument, Message

_VALIDATE = Argument("validate")
Warn = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Input:
    """Sequence files, the file to validate on if there is one, and the column of sequences where these are tables.

    `left_out` is where records go that the residue policy leaves out.
    """

    paths: list[str | os.PathLike[str]]
    validate: str | os.PathLike[str] | None
    seq_col: str | None
    left_out: RejectList

    @classmethod
    def of(
        cls, fasta: Paths, validate: str | os.PathLike[str] | None, seq_col: str | None,
        rejects: RejectOptions | None = None,
    ) -> Input:  # fmt: skip
        """One file or several.

        Raises:
            ConfigError: the list of rejected records would overwrite one of them; FileError: it cannot be made.
        """
        paths = [fasta] if isinstance(fasta, (str, os.PathLike)) else list(fasta)
        return cls(paths, validate, seq_col, RejectList(rejects, [*paths, validate]))

    def read(self, folder: Path, options: TrainOptions, warn: Warn) -> tuple[HoldOut, int]:
        """The training part and the held-out part, and the number of records that the residue policy left out.

        Args:
            folder: where a corpus larger than memory is kept, or near there.

        Raises:
            ConfigError: no file to validate on, but the options want one; DataError: a part with nothing to learn or
            score; FastaError, FileError: from the sequence files.
        """
        if options.validate is None and self.validate is None:
            text = "the sequences to validate on are in a file of their own; name it with {validate}"
            raise ConfigError(Message(text, validate=_VALIDATE))
        how: dict[str, Any] = {"seq_col": self.seq_col, "folder": folder, "listing": self.left_out.reading}
        store = read_store(self.paths, options.residues, warn, **how)
        rejected = store.rejected
        if self.validate is None:
            try:
                parts = hold_out(store, options.validate or 0.0, options.seed, options.hold_out)
            except DataError as error:
                raise DataError(Message("{paths}: {error}", paths=listed(self.paths), error=error.args[0])) from error
        else:
            held = read_store(self.validate, options.residues, warn, **how)
            parts = HoldOut(store, held)
            rejected += held.rejected
        self._check(parts, trains_on_all=options.validate == 0)
        return parts, rejected

    def _check(self, parts: HoldOut, trains_on_all: bool) -> None:
        if not parts.train.has_standard_residue():
            raise DataError(f"{listed(self.paths)}: holds none of the twenty residues, there is nothing to train on")
        if not trains_on_all and not parts.held.has_standard_residue():
            where = f"{listed(self.paths)}: {parts.held.extent()} held out of it"
            if self.validate is not None:
                where = f"{os.fspath(self.validate)}: it"
            text = "{where} cannot be scored, for lack of any of the twenty residues; name others with {validate}"
            raise DataError(Message(text, where=where, validate=_VALIDATE))

    def origin(self, command: str, parts: HoldOut, init: str | None, warn: Warn) -> dict[str, Any]:
        """Where a new run comes from; how its parts are related is said."""
        if parts.identity is not None and parts.clusters < len(parts.held):
            text = (
                "note: {held} sequences are held out in {clusters} whole clusters of at least {identity:.0%} identity, "
            )
            text += "so that no relative that was found is in both parts"
            facts = {"held": len(parts.held), "clusters": parts.clusters, "identity": parts.identity}
            warn(Message(text, **facts))
        leakage = look(parts.train, parts.held)
        if leakage is not None and (found := leakage.remark()) is not None:
            warn(Message("{kind}: {found}", kind="note" if self.validate is None else "warning", found=found))
        return origin(command, self.paths, described(parts, self.validate), leakage, init)
