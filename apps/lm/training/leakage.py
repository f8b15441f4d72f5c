"""Whether held-out sequences have relatives among those of the training, which flatters the model: a quick look."""

from __future__ import annotations

import numpy as np

from protperf.lm.data.cluster import nearest
from protperf.lm.data.store import TokenStore
from protperf.message import Argument, Message

IDENTITY = 0.5
"""Identity from which a sequence of the training gives a held-out one away."""
MAX_ASKED = 200
"""Held-out sequences that are looked up: enough to know the share to a few percent."""
MAX_RESIDUES = 1 << 26
"""Residues of a training set up to which it is searched: an index of it takes memory and some seconds."""


def remark(train: TokenStore, held: TokenStore) -> Message | None:
    """One line on the held-out sequences with relatives in the training; None if none of those looked up has one, or
    the training set is too large to search.
    """
    if train.num_residues > MAX_RESIDUES or not len(held):
        return None
    asked = held.select(np.unique(np.linspace(0, len(held) - 1, MAX_ASKED).astype(np.int64)))
    count = int((nearest(asked, train, IDENTITY)[0] >= 0).sum())
    if not count:
        return None
    text = "{count} of {asked} held-out sequences{looked} have a relative of at least {identity:.0%} identity among "
    text += "those of the training, so their perplexity flatters the model; `protperf data split` makes parts without "
    text += "relatives, and {validate} takes one"
    looked = " that were looked up" if len(asked) < len(held) else ""
    facts = {"count": count, "asked": len(asked), "looked": looked, "identity": IDENTITY}
    return Message(text, **facts, validate=Argument("validate"))
