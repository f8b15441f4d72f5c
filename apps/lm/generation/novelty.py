"""How new a sequence is: whether it is one of a known set, which of them is nearest, and how identical they are.

The nearest is looked for among the sequences that share most different 5-mers with it, by exact global alignment of the
best few. Memory: five bytes per residue of the set and four per sequence, and a table of 26 MB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD

K = 5
"""Residues of the words that are looked up."""
ALIGNED = 5
"""Sequences that are aligned."""
_BLOCK = 1 << 20
_NOT_IN_MATRIX = str.maketrans("UOJ", "XXX")


class KnownSequences:
    """The sequences of files, to compare others with."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]], residues: str = "map") -> None:
        self.ids: list[str] = []
        sequences: list[NDArray[np.uint8]] = []
        self._digests: set[bytes] = set()
        for batch in io.read_tokens(paths, residues=residues):
            for record in batch:
                self.ids.append(record.id)
                sequences.append(record.tokens)
                self._digests.add(_digest(record.tokens))
        self._tokens = np.concatenate([np.empty(0, np.uint8), *sequences])
        self._offsets = np.cumsum([0, *map(len, sequences)])
        self._index()

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, tokens: NDArray[np.uint8]) -> bool:
        """Whether a sequence is one of them, residue by residue."""
        return _digest(tokens) in self._digests

    def nearest(self, tokens: NDArray[np.uint8]) -> tuple[str, float] | None:
        """Id of the most identical sequence, and the identity with it; None if none shares five residues in a row.

        The identity is the share of the residues of `tokens` that are aligned with the same residue in the best global
        alignment (BLOSUM62, 11 to open a gap, 1 to extend it, gaps at the ends free): 1 for a part of a known sequence.
        """
        best: tuple[str, float] | None = None
        for number in self._candidates(tokens):
            other = self._tokens[self._offsets[number] : self._offsets[number + 1]]
            found = identity(io.decode(tokens), io.decode(other))
            if best is None or found > best[1]:
                best = (self.ids[number], found)
        return best

    def _index(self) -> None:
        """Owners of each word, those of one word after another: `owners[starts[word]:starts[word + 1]]`.

        A counting sort in blocks of residues: the sort of all of them at once would take eight times the memory.
        """
        counts = np.zeros(NUM_STANDARD**K, np.int64)
        for words, _ in self._blocks():
            counts += np.bincount(words, minlength=len(counts))
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._owners = np.empty(self._starts[-1], np.int32)
        filled = self._starts[:-1].copy()
        for words, owners in self._blocks():
            order = np.argsort(words, kind="stable")
            ranked = words[order]
            # The first of this word in the block, the second, and so on.
            rank = np.arange(len(ranked)) - np.searchsorted(ranked, ranked)
            self._owners[filled[ranked] + rank] = owners[order]
            filled += np.bincount(ranked, minlength=len(filled))

    def _blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Words and their owners, block by block; no word reaches into the next sequence."""
        for start in range(0, len(self._tokens), _BLOCK):
            words, valid = _words(self._tokens[start : start + _BLOCK + K - 1])
            places = start + np.flatnonzero(valid)
            owners = np.searchsorted(self._offsets, places, side="right") - 1
            inside = places + K <= self._offsets[owners + 1]
            yield words[places[inside] - start], owners[inside]

    def _candidates(self, tokens: NDArray[np.uint8]) -> list[int]:
        """The sequences that share most different words, most first; of equals the first in the file."""
        words, valid = _words(tokens)
        shared = np.zeros(len(self), np.int64)
        for word in np.unique(words[valid]).tolist():
            # A sequence that has a word twice shares it once.
            shared[np.unique(self._owners[self._starts[word] : self._starts[word + 1]])] += 1
        order = np.argsort(-shared, kind="stable")[:ALIGNED]
        return [int(number) for number in order if shared[number]]


def _digest(tokens: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(tokens.tobytes()).digest()


def _words(tokens: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The number of the word that starts at each place, and whether it holds standard residues only."""
    residues = tokens.astype(np.int64) - FIRST_RESIDUE
    standard = (residues >= 0) & (residues < NUM_STANDARD)
    count = max(0, len(tokens) - K + 1)
    words, valid = np.zeros(count, np.int64), np.ones(count, bool)
    for i in range(K):
        words = words * NUM_STANDARD + residues[i : i + count]
        valid &= standard[i : i + count]
    return words, valid


def identity(sequence: str, other: str) -> float:
    """Share of the residues of `sequence` that are aligned with the same one of `other`; see `nearest`."""
    if not sequence or not other:
        return 0.0
    alignment = _aligner().align(*(text.translate(_NOT_IN_MATRIX) for text in (sequence, other)))[0]
    same = 0
    for (a, end), (b, _) in zip(*alignment.aligned, strict=True):
        same += sum(x == y for x, y in zip(sequence[a:end], other[b : b + end - a], strict=True))
    return same / len(sequence)


def _aligner() -> Any:
    from Bio.Align import PairwiseAligner, substitution_matrices

    aligner = PairwiseAligner(mode="global")
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    aligner.open_gap_score, aligner.extend_gap_score = -11, -1
    aligner.end_gap_score = 0
    return aligner
