"""The first of equal sequences, in one pass over any number of them."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_DIGEST_BYTES = 16
"""Of two different sequences among a billion, equal digests are expected in one of 10^20 sets."""


class Distinct:
    """Tells new sequences from those that were seen before, with about 100 bytes of memory for each.

    Attributes:
        repeats: sequences that were seen before.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.repeats = 0

    def is_new(self, tokens: NDArray[np.uint8], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which sequences are the first of their residues [R].

        Shapes: tokens [sum of lengths], lengths [R].
        """
        data, ends = np.ascontiguousarray(tokens).data, np.cumsum(lengths)
        new = np.empty(len(lengths), np.bool_)
        for i, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
            digest = hashlib.blake2b(data[end - length : end], digest_size=_DIGEST_BYTES).digest()
            new[i] = digest not in self._seen
            self._seen.add(digest)
        self.repeats += int((~new).sum())
        return new
