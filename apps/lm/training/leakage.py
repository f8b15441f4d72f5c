"""Whether held-out sequences have relatives among those of the training, which flatters the model: a quick look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protperf.lm.data.cluster import nearest
from protperf.lm.data.overlap import IDENTITIES
from protperf.lm.data.store import TokenStore
from protperf.message import Argument, Message

MAX_ASKED = 200
"""Held-out sequences that are looked up: enough to know the share to a few percent."""
MAX_RESIDUES = 1 << 26
"""Residues of a training set up to which it is searched: an index of it takes memory and some seconds."""


@dataclass(frozen=True, slots=True)
class Leakage:
    """Of `asked` held-out sequences that were looked up, those with a relative in the training, by identity."""

    held: int
    asked: int
    related: dict[float, int]

    def facts(self) -> dict[str, int]:
        """The counts by name, as a checkpoint keeps them."""
        return {"looked_up": self.asked, **{f"related_{identity:.0%}": n for identity, n in self.related.items()}}

    def remark(self) -> Message | None:
        """One line on the sequences with relatives; None if none was found."""
        identity = min(self.related)
        if not self.related[identity]:
            return None
        text = (
            "{count} of {asked} held-out sequences{looked} have a relative of at least {identity:.0%} identity among "
        )
        text += "those of the training, so their perplexity flatters the model; `protperf data split` makes parts "
        text += "without relatives, and {validate} takes one"
        looked = " that were looked up" if self.asked < self.held else ""
        facts = {"count": self.related[identity], "asked": self.asked, "looked": looked, "identity": identity}
        return Message(text, **facts, validate=Argument("validate"))


def look(train: TokenStore, held: TokenStore) -> Leakage | None:
    """Look up some held-out sequences; None if there are none, or the training set is too large to search."""
    if train.num_residues > MAX_RESIDUES or not len(held):
        return None
    asked = held.select(np.unique(np.linspace(0, len(held) - 1, MAX_ASKED).astype(np.int64)))
    found = np.nan_to_num(nearest(asked, train, min(IDENTITIES))[1])
    return Leakage(len(held), len(asked), {identity: int((found >= identity).sum()) for identity in IDENTITIES})
