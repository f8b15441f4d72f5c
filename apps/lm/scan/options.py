"""What can be asked of a scan. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.named_files import PAGES, PICTURES, check_suffix
from protperf.lm.options import check, option
from protperf.message import Argument, Message

STRUCTURES = (".pdb", ".ent", ".cif", ".mmcif")

_REGION = re.compile(r"(-?\d{1,9})(?:-(-?\d{1,9}))?")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegionOptions:
    """Which changes are scored."""

    region: str | None = option(
        None, "Positions to scan, such as 24-286.", unit="FIRST-LAST", shown_default="the whole protein"
    )
    dels: bool = option(False, "Also score the deletion of each residue, which only full can.")

    def __post_init__(self) -> None:
        check(self)
        if self.region is not None and _REGION.fullmatch(self.region) is None:
            text = "{region} is {value!r}; write it like 24-286, in the numbering of {offset}"
            names = {"region": Argument("region"), "offset": Argument("offset")}
            raise ConfigError(Message(text, value=self.region, **names))

    def span(self, first: int, last: int) -> tuple[int, int]:
        """The first and last position of the region in a protein whose positions are `first` to `last`.

        Raises:
            ConfigError: it reaches outside.
        """
        if self.region is None:
            return first, last
        match = _REGION.fullmatch(self.region)
        assert match is not None
        start, end = int(match[1]), int(match[2] or match[1])
        if not first <= start <= end <= last:
            text = "{region} is {value}, but the wild type has the positions {first} to {last} with {offset}"
            names = {"region": Argument("region"), "offset": Argument("offset", first)}
            raise ConfigError(Message(text, value=self.region, first=first, last=last, **names))
        return start, end

    def to_mapping(self) -> dict[str, Any]:
        """The values by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PictureOptions:
    """What is made of a scan besides its rows."""

    matrix: bool = option(False, "One row per position and one column per residue, in place of one row per change.")
    heatmap: Path | None = option(None, "Heat map to write, .png or .svg; needs matplotlib.", unit="FILE")
    report: Path | None = option(
        None, "Report of the scan, .html: heat map and ranked changes on a page that needs no other file.", unit="FILE"
    )
    structure: Path | None = option(None, "Structure of the protein, PDB or mmCIF.", unit="FILE")
    structure_out: Path | None = option(
        None, "The same structure with the mean score of each position as B-factor.", unit="FILE"
    )
    chain: str | None = option(
        None, "Chain of the structure to colour.", unit="NAME", shown_default="every chain of this protein"
    )

    def __post_init__(self) -> None:
        check(self)
        names = {name: Argument(name) for name in ("structure", "structure_out", "chain")}
        if (self.structure is None) != (self.structure_out is None):
            raise ConfigError(Message("{structure} and {structure_out} belong together; give both", **names))
        if self.chain is not None and self.structure is None:
            raise ConfigError(Message("{chain} needs {structure}", **names))
        for name, known in (
            ("heatmap", PICTURES),
            ("report", PAGES),
            ("structure", STRUCTURES),
            ("structure_out", STRUCTURES),
        ):
            check_suffix(name, getattr(self, name), known)
