"""A variant as edits of the wild type, in one normal form however it was written.

The normal form: edits in the order of the sequence, none of which restores what stood there; a replacement by as many
residues is one substitution for each residue that changes; residues that a replacement shares with what it replaces
are left out of it; a deletion or an insertion within a repeat stands as far to the right as it can (HGVS's 3' rule).
Two texts that make the same change within one edit are therefore the same variant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.lm.variants.wild_type import WildType


@dataclass(frozen=True, slots=True, order=True)
class Edit:
    """`inserted` tokens in the place of `removed` residues, before which stand `start` residues of the wild type."""

    start: int
    removed: int
    inserted: bytes

    @property
    def end(self) -> int:
        """Residues of the wild type up to the last that is removed."""
        return self.start + self.removed

    @property
    def is_substitution(self) -> bool:
        return self.removed == len(self.inserted) == 1


@dataclass(frozen=True, slots=True)
class Variant:
    """Edits in normal form; none for the wild type."""

    edits: tuple[Edit, ...] = ()

    @property
    def is_substitution(self) -> bool:
        """Whether the length stays and residues change one by one."""
        return all(edit.is_substitution for edit in self.edits)

    @property
    def sites(self) -> tuple[int, ...]:
        """Indices of the residues that are substituted or removed."""
        return tuple(index for edit in self.edits for index in range(edit.start, edit.end))

    @property
    def inserted(self) -> NDArray[np.uint8]:
        """The tokens of all edits, in order; of substitutions, the new residue of each site."""
        return np.frombuffer(b"".join(edit.inserted for edit in self.edits), np.uint8)

    @property
    def first(self) -> int:
        """The first index at which the mutant may differ from the wild type."""
        return self.edits[0].start if self.edits else 0

    def applied(self, wild_type: WildType) -> NDArray[np.uint8]:
        """The mutant's residues as tokens."""
        parts, done = [], 0
        for edit in self.edits:
            parts += [wild_type.tokens[done : edit.start], np.frombuffer(edit.inserted, np.uint8)]
            done = edit.end
        return np.concatenate([*parts, wild_type.tokens[done:]])

    def name(self, wild_type: WildType) -> str:
        """The variant in one-letter codes, its edits joined by `:`; `WT` for none."""
        return ":".join(_name(edit, wild_type) for edit in self.edits) or "WT"


def normalized(edits: Iterable[Edit], wild_type: WildType) -> Variant:
    """The normal form of edits that do not overlap, in any order."""
    tokens = wild_type.tokens.tobytes()
    found: list[Edit] = []
    # From the right, because how far an edit may move depends on the one after it.
    for edit in sorted(edits, reverse=True):
        pieces = _normal(edit, tokens, _limit(found, tokens))
        # One that has moved to where another inserts is one insertion with it, which may move further.
        while found and pieces and pieces[-1].end == found[0].start and pieces[-1].removed == found[0].removed == 0:
            both = pieces[-1].inserted + found.pop(0).inserted
            pieces = _normal(Edit(pieces[-1].start, 0, both), tokens, _limit(found, tokens))
        found[:0] = pieces
    return Variant(tuple(found))


def _limit(later: list[Edit], tokens: bytes) -> int:
    """How far to the right an edit before those may move."""
    return later[0].start if later else len(tokens)


def difference(mutant: NDArray[np.uint8], wild_type: WildType) -> Variant:
    """The variant that turns the wild type into another sequence: substitutions if the lengths agree, else one edit."""
    return normalized([Edit(0, len(wild_type), mutant.tobytes())], wild_type)


def _normal(edit: Edit, tokens: bytes, limit: int) -> list[Edit]:
    removed = tokens[edit.start : edit.end]
    if len(removed) == len(edit.inserted):
        return list(_substitutions(edit, removed))
    before = _shared(removed, edit.inserted)
    after = _shared(removed[before:][::-1], edit.inserted[before:][::-1])
    start, end = edit.start + before, edit.end - after
    inserted = edit.inserted[before : len(edit.inserted) - after]
    if not inserted:
        while end < limit and tokens[start] == tokens[end]:
            start, end = start + 1, end + 1
    elif start == end:
        while start < limit and inserted[0] == tokens[start]:
            inserted, start = inserted[1:] + inserted[:1], start + 1
        end = start
    return [Edit(start, end - start, inserted)]


def _substitutions(edit: Edit, removed: bytes) -> Iterator[Edit]:
    for index, (old, new) in enumerate(zip(removed, edit.inserted, strict=True), edit.start):
        if old != new:
            yield Edit(index, 1, bytes([new]))


def _shared(first: bytes, second: bytes) -> int:
    """Length of the common start."""
    length = min(len(first), len(second))
    differs = np.frombuffer(first, np.uint8, length) != np.frombuffer(second, np.uint8, length)
    return int(differs.argmax()) if differs.any() else length


def _name(edit: Edit, wild_type: WildType) -> str:
    def place(index: int) -> str:
        return f"{wild_type.letter(index)}{index + wild_type.offset}"

    inserted = io.decode(edit.inserted)
    if edit.is_substitution:
        return f"{place(edit.start)}{inserted}"
    if not edit.removed and 0 < edit.start < len(wild_type):
        return f"{place(edit.start - 1)}_{place(edit.start)}ins{inserted}"
    if not edit.removed:
        # No residue stands on the other side: the neighbour is replaced by itself and more.
        index = 0 if edit.start == 0 else edit.start - 1
        both = inserted + wild_type.letter(index) if edit.start == 0 else wild_type.letter(index) + inserted
        return f"{place(index)}delins{both}"
    span = place(edit.start) + (f"_{place(edit.end - 1)}" if edit.removed > 1 else "")
    return f"{span}delins{inserted}" if inserted else f"{span}del"
