"""Mean scores of a scan as B-factors of a structure, for viewers that colour by them.

Residues are matched by their numbers where these are the positions of the wild type, with every residue that the
structure shows being that of the wild type; else by aligning the two sequences, which must agree in every residue as
well (numbering schemes of families skip numbers, and tags shift them). A chain that does not agree is not coloured: a
score would stand at the wrong place. Positions outside of the scan get a B-factor of 0.
"""

from __future__ import annotations

import io as text_io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.errors import DataError, FileError
from protperf.lm.storage import durable

if TYPE_CHECKING:
    from protperf.lm.scan.scan import Scan
    from protperf.lm.variants.wild_type import WildType


@dataclass(frozen=True, slots=True)
class Coloured:
    """What was written: the chains, the number of their residues that have a score, and how they were matched.

    Attributes:
        by_alignment: chains whose numbers are not the positions of the wild type.
    """

    chains: tuple[str, ...]
    num_residues: int
    by_alignment: tuple[str, ...]

    def notes(self) -> list[str]:
        """The same in words."""
        found = [f"coloured {self.num_residues} residues of chain {', '.join(self.chains)}"]
        if self.by_alignment:
            chains = ", ".join(self.by_alignment)
            found.append(f"the numbers of chain {chains} are not those of the wild type; its residues were aligned")
        return found


@dataclass(frozen=True, slots=True)
class Match:
    """A structure, and the positions in the wild type of the residues of its chains.

    Attributes:
        residues: residues of Biopython with their positions.
    """

    structure: Any
    residues: list[tuple[Any, int]]
    chains: tuple[str, ...]
    by_alignment: tuple[str, ...]

    def write(self, scan: Scan, out: str) -> Coloured:
        """Write the structure with the mean scores of a scan.

        Raises:
            FileError: the file cannot be written, or its format has no room for this structure.
        """
        for atom in self.structure.get_atoms():
            atom.set_bfactor(0.0)
        count = _set(self.residues, dict(zip(scan.positions.tolist(), scan.mean.tolist(), strict=True)))
        _write(self.structure, out)
        return Coloured(self.chains, count, self.by_alignment)


@dataclass(frozen=True, slots=True)
class _Mismatch:
    """The first residue of a chain that is not that of the wild type."""

    text: str


def match(wild_type: WildType, path: str, chain: str | None) -> Match:
    """Read a structure and find the wild type in it; `Scan.color_structure` says what is raised."""
    found = _read(path)
    chains = [each for model in found for each in model]
    if chain is not None:
        names = sorted({each.id for each in chains})
        chains = [each for each in chains if each.id == chain]
        if not chains:
            raise DataError(f"{path}: no chain {chain!r}; it has {', '.join(names)}")
    residues: list[tuple[Any, int]] = []
    matched, aligned, faults = [], [], []
    for each in chains:
        placed = _matched(wild_type, each)
        if isinstance(placed, _Mismatch):
            faults.append(placed.text)
            continue
        pairs, by_alignment = placed
        residues += pairs
        matched.append(each.id)
        aligned += [each.id] * by_alignment
    if not matched or (chain is not None and faults):
        raise DataError(f"{path}: {faults[0] if faults else 'no chain has residues'}")
    return Match(found, residues, tuple(dict.fromkeys(matched)), tuple(dict.fromkeys(aligned)))


def _set(pairs: list[tuple[Any, int]], means: dict[int, float]) -> int:
    count = 0
    for residue, position in pairs:
        mean = means.get(position, math.nan)
        if not math.isnan(mean):
            count += 1
            for atom in residue:
                atom.set_bfactor(mean)
    return count


def _read(path: str) -> Any:
    with durable.named(path), open(path, "rb"):
        pass
    pdb = _biopython("PDB")
    parser = pdb.MMCIFParser(QUIET=True) if _is_mmcif(path) else pdb.PDBParser(QUIET=True)
    try:
        found = parser.get_structure("scan", path)
    except (pdb.PDBExceptions.PDBConstructionException, ValueError, KeyError) as error:
        raise DataError(f"{path}: is not a structure that can be read: {error}") from error
    if not any(True for _ in found.get_atoms()):
        raise DataError(f"{path}: holds no atoms; give a PDB or mmCIF file")
    return found


def _write(structure: Any, out: str) -> None:
    pdb = _biopython("PDB")
    writer = pdb.MMCIFIO() if _is_mmcif(out) else pdb.PDBIO()
    writer.set_structure(structure)
    text = text_io.StringIO()
    try:
        writer.save(text)
    except ValueError as error:
        # Such as a chain name of two letters, for which PDB has no room.
        raise FileError(None, f"the structure does not fit the format ({error}); write .cif", out) from error
    durable.replace_file(Path(out), text.getvalue().encode())


def _biopython(module: str) -> Any:
    # It has no types.
    return import_module(f"Bio.{module}")


def _is_mmcif(path: str) -> bool:
    return Path(path).suffix.lower() in (".cif", ".mmcif")


def _matched(wild: WildType, chain: Any) -> tuple[list[tuple[Any, int]], bool] | _Mismatch:
    """The residues of a chain with their positions, and whether an alignment was needed; or why there are none."""
    residues = list(_residues(chain))
    if not residues:
        return _Mismatch(f"chain {chain.id} has no residues")
    by_number = [(residue, residue.id[1]) for residue, _ in residues]
    wrong = None
    for residue, letter in residues:
        _, number, insertion = residue.id
        index = number - wild.offset
        there = wild.letter(index) if 0 <= index < len(wild) else None
        if there != letter or insertion.strip():
            there = there or "nothing"
            wrong = f"chain {chain.id} has {letter} at {number}{insertion.strip()}, where the wild type has {there}"
            break
    if wrong is None:
        return by_number, False
    indices = _aligned("".join(letter for _, letter in residues), wild.sequence)
    if indices is None:
        return _Mismatch(f"{wrong}; the sequences do not agree under another numbering either")
    return [(residue, index + wild.offset) for (residue, _), index in zip(residues, indices, strict=True)], True


def _residues(chain: Any) -> Iterator[tuple[Any, str]]:
    """Amino acids of a chain with their letters, modified ones as what they are made of; no water, no ligands."""
    letters = _biopython("Data.PDBData").protein_letters_3to1_extended
    for residue in chain:
        letter = letters.get(residue.get_resname().strip().upper())
        if letter is not None and "CA" in residue:
            yield residue, letter


def _aligned(shown: str, sequence: str) -> list[int] | None:
    """Indices of the wild type's residues that a structure shows; None unless all of them agree.

    The residues shown are the wild type's in its order, with parts missing. The alignment has as few gaps as possible.
    """
    aligner = _biopython("Align").PairwiseAligner(mode="global", match_score=1, mismatch_score=-1000)
    # A residue that is shown and stands nowhere in the wild type is a disagreement.
    aligner.insertion_score = -1000
    aligner.open_internal_deletion_score, aligner.extend_internal_deletion_score = -1, 0
    aligner.end_deletion_score = 0
    best = aligner.align(sequence, shown)[0]
    indices = [i for start, end in best.aligned[0] for i in range(start, end)]
    agrees = len(indices) == len(shown) and all(sequence[i] == x for i, x in zip(indices, shown, strict=True))
    return indices if agrees else None
