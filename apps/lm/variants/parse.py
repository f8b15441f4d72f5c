"""Variants as people write them: `A24G`, `A24G:D50N`, `p.Ala24Gly`, `A24_G26del`, `K30_L31insGS`, `WT`.

Reading has two steps. `read_mutations` takes the text apart and knows no wild type; `resolve` compares what it names
with the wild type. A residue that stands elsewhere is a fault and never repaired: the numbering would be another one.

Source: den Dunnen et al. 2016, HGVS recommendations for the description of sequence variants, doi:10.1002/humu.22981.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from protperf import io
from protperf.errors import DataError
from protperf.lm.variants.variant import Edit, Variant, normalized
from protperf.lm.variants.wild_type import WildType
from protperf.message import Argument, Message

WILD_TYPE_NAMES = frozenset({"wt", "_wt", "=", "(=)", "wildtype", "wild-type", "wild type", "wild_type"})
"""Names of the wild type, in lower case and without `p.`; its score is 0."""

_THREE = {
    "Ala": "A", "Arg": "R", "Asn": "N", "Asp": "D", "Cys": "C", "Gln": "Q", "Glu": "E", "Gly": "G", "His": "H",
    "Ile": "I", "Leu": "L", "Lys": "K", "Met": "M", "Phe": "F", "Pro": "P", "Pyl": "O", "Sec": "U", "Ser": "S",
    "Thr": "T", "Trp": "W", "Tyr": "Y", "Val": "V", "Ter": "*",
}  # fmt: skip
_RESIDUES = frozenset("ACDEFGHIKLMNPQRSTVWYUO")

_PLACE = r"([A-Za-z]{3}|[A-Za-z*])(-?[0-9]{1,9})"
_EVENT = re.compile(rf"{_PLACE}(?:_{_PLACE})?(delins|del|ins|dup)([A-Za-z*]*)")
_SUBSTITUTION = re.compile(rf"{_PLACE}([A-Za-z]{{3}}|[A-Za-z*=])")
_REFERENCE = re.compile(r"[\w.\-()]+:(?=p\.)")
"""What HGVS writes before a protein variant: `NP_000537.3:p.Arg175His`."""
_MAX_SHOWN = 40
"""Characters of a text that an error shows."""
_EXAMPLES = "A24G, A24G:D50N, p.Ala24Gly, A24del, A24_G26del, K30_L31insGS or A24_G26delinsKT"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change as it is written: the residues it names, and what it makes of them.

    Attributes:
        kind: `sub`, `del`, `ins`, `delins` or `dup`.
        places: the first and the last residue that are named, each with its position; the same for one residue.
        inserted: the new residues.
    """

    text: str
    kind: str
    places: tuple[tuple[str, int], tuple[str, int]]
    inserted: str


def parse(text: str, wild_type: WildType) -> Variant:
    """The variant of a text.

    Raises:
        DataError: no variant, or one that contradicts the wild type; the message shows what was found there.
    """
    return resolve(read_mutations(text), wild_type)


def read_mutations(text: str) -> list[Mutation]:
    """The changes that a text names; none for the wild type.

    They are separated by `:`, `,`, `;` or `+`.

    Raises:
        DataError: it is not a variant, or of a kind that has no score.
    """
    bare = _REFERENCE.sub("", text.strip())
    bare = re.sub(r"^p\.(?=[(\[=])", "", bare)
    if bare.lower().removeprefix("p.") in WILD_TYPE_NAMES:
        return []
    if bare[:1] in ("[", "(") and bare[-1:] in ("]", ")"):
        bare = bare[1:-1]
    return [_mutation(part.strip(), text) for part in re.split(r"[:,;+]", bare)]


def is_variant(text: str) -> bool:
    """Whether a text has the form of a variant, of any protein."""
    try:
        read_mutations(text)
    except DataError:
        return False
    return True


def resolve(mutations: Iterable[Mutation], wild_type: WildType) -> Variant:
    """The variant that these changes make of the wild type.

    Raises:
        DataError: a residue that is another one in the wild type or lies outside, a site that is changed twice, or
            nothing left of the protein.
    """
    edits: list[tuple[Edit, Mutation]] = [(_edit(mutation, wild_type), mutation) for mutation in mutations]
    edits.sort(key=lambda pair: pair[0])
    for (first, one), (second, other) in itertools.pairwise(edits):
        # Two insertions at one place have no order.
        if second.start < first.end or (second.start == first.start and not first.removed and not second.removed):
            raise DataError(f"{one.text} and {other.text} change the same site; name each site once")
    variant = normalized([edit for edit, _ in edits], wild_type)
    if sum(edit.removed - len(edit.inserted) for edit in variant.edits) >= len(wild_type):
        raise DataError("nothing is left of the protein, and nothing has no score")
    return variant


def fitting_offset(mutations: Iterable[Mutation], wild_type: WildType) -> int | None:
    """The only offset with which every residue that is named stands in the wild type; None if not exactly one does.

    A few residues fit in many places by chance, so that fewer than five different ones say nothing.
    """
    named = {place for mutation in mutations for place in mutation.places}
    if len(named) < 5:
        return None
    sequence = wild_type.sequence
    lowest, highest = min(position for _, position in named), max(position for _, position in named)
    offsets = range(highest - len(sequence) + 1, lowest + 1)
    fitting = [o for o in offsets if all(sequence[position - o] == letter for letter, position in named)]
    return fitting[0] if len(fitting) == 1 else None


def _mutation(part: str, whole: str) -> Mutation:
    bare, part = part.removeprefix("p.").strip("()"), _shortened(part)
    shown = repr(part) if _shortened(whole.strip()) == part else f"{part!r} in {_shortened(whole.strip())!r}"
    if event := _EVENT.fullmatch(bare):
        first, last = _place(event[1], event[2], shown), _place(event[3] or event[1], event[4] or event[2], shown)
        inserted = _sequence(event[6], shown)
        if bool(inserted) != event[5].endswith("ins"):
            what = "names no new residues" if event[5].endswith("ins") else "is followed by residues"
            raise DataError(f"{shown} is not a variant: {event[5]} {what}; write {_EXAMPLES}")
        return Mutation(part, event[5], (first, last), inserted)
    if substitution := _SUBSTITUTION.fullmatch(bare):
        place = _place(substitution[1], substitution[2], shown)
        new = place[0] if substitution[3] == "=" else _residue(substitution[3], shown)
        return Mutation(part, "sub", (place, place), new)
    if re.search(r"fs|ext|Ter|\*", bare):
        raise DataError(f"{shown} changes where the protein ends, which has no score; leave it out")
    raise DataError(f"{shown} is not a variant; write {_EXAMPLES}")


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _place(letters: str, position: str, shown: str) -> tuple[str, int]:
    return _residue(letters, shown), int(position)


def _residue(letters: str, shown: str) -> str:
    letter = _THREE.get(letters.capitalize(), "") if len(letters) == 3 else letters.upper()
    if letter == "*":
        raise DataError(f"{shown} makes or moves a stop, which has no score; leave it out")
    if letter not in _RESIDUES:
        raise DataError(f"{shown} is not a variant: {letters!r} is not one of the residues that have a score")
    return letter


def _sequence(text: str, shown: str) -> str:
    """Residues in three-letter codes (`GlySer`) or in one-letter codes (`GS`)."""
    if re.fullmatch(r"(?:[A-Z][a-z]{2})+", text):
        return "".join(_residue(text[at : at + 3], shown) for at in range(0, len(text), 3))
    if text and not text.isupper() and text != "*" * len(text):
        # `ala` may be alanine, or A, L and A.
        raise DataError(f"{shown} is not a variant: write the new residues as GS or as GlySer")
    return "".join(_residue(letter, shown) for letter in text)


def _edit(mutation: Mutation, wild_type: WildType) -> Edit:
    first, last = (_index(letter, position, mutation, wild_type) for letter, position in mutation.places)
    text = mutation.text
    if last < first:
        raise DataError(
            f"{text}: {last + wild_type.offset} comes before {first + wild_type.offset}; change their order"
        )
    inserted = io.encode(mutation.inserted)[0].tobytes()
    if mutation.kind == "ins":
        if last != first + 1:
            raise DataError(f"{text}: an insertion stands between two neighbours, such as K30_L31insGS")
        return Edit(last, 0, inserted)
    removed = range(first, last + 1)
    for index in removed:
        if not wild_type.has_score(index):
            found = f"{wild_type.letter(index)} at position {index + wild_type.offset}"
            raise DataError(f"{text}: the wild type has {found}, which has no score")
    if mutation.kind == "dup":
        return Edit(last + 1, 0, wild_type.tokens[first : last + 1].tobytes())
    return Edit(first, len(removed), inserted)


def _index(letter: str, position: int, mutation: Mutation, wild_type: WildType) -> int:
    index = position - wild_type.offset
    if not 0 <= index < len(wild_type):
        text = "{mutation}: position {position} lies outside of the wild type, which has {first} to {last} with "
        parts = {"mutation": mutation.text, "position": position, "first": wild_type.offset, "last": wild_type.last}
        raise DataError(Message(text + "{offset}", **parts, offset=Argument("offset", wild_type.offset)))
    if wild_type.letter(index) != letter:
        found = wild_type.letter(index)
        raise DataError(f"{mutation.text}: the wild type has {found} at position {position}, not {letter}")
    return index
