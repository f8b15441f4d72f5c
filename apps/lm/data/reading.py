"""How training reads a sequence: in which direction, and from where, so that a score depends on neither."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LATE, _FOREIGN = 0.375, 0.125
"""Of varied starts, those that leave out the first residues, and those that have others in front of them."""
_MAX_FOREIGN = 40
"""Residues in front of a sequence, at the most: about a signal peptide."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Ways to read. `directions` is that of `ModelConfig`; `starts` that of `TrainOptions`."""

    directions: str = "forward"
    starts: str = "whole"


PLAIN = Reading()
"""Every sequence forward and as a whole."""


def read(framed: NDArray[np.uint8], reading: Reading, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The tokens of a sequence as they are read this time.

    A backward reading is the framed sequence reversed, special tokens included. With varied starts half of the readings
    do not begin where the sequence does: up to half of it is left out at the beginning of the reading, or residues of
    the same sequence, in random order, come on top of it.

    Shapes: framed [L+2], with BOS and EOS; returns [N].
    """
    if reading.directions == "both" and rng.random() < 0.5:
        framed = framed[::-1]
    if reading.starts == "varied":
        framed = _started_elsewhere(framed, rng)
    return framed


def _started_elsewhere(framed: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    residues, kind = framed[1:-1], rng.random()
    if kind < _LATE:
        skipped = int(rng.integers(0, len(residues) // 2 + 1))
        return np.concatenate([framed[:1], framed[1 + skipped :]])
    if kind < _LATE + _FOREIGN and len(residues):
        foreign = rng.choice(residues, int(rng.integers(1, _MAX_FOREIGN + 1)))
        return np.concatenate([framed[:1], foreign, framed[1:]])
    return framed
