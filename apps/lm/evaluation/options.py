"""What an evaluation can be asked for. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.named_files import PICTURES, check_suffix
from protperf.lm.options import check, option
from protperf.lm.shared_options import batch_tokens_option, deterministic_option
from protperf.message import Argument, Message

GROUPINGS = ("length", "residue", "calibration", "cluster")
PLOTTED = ("length", "calibration")
"""Groups that a plot shows."""


def _known_grouping(name: str) -> None:
    if name not in GROUPINGS:
        text = "{by} is {name!r}; choose one of {known}"
        raise ConfigError(Message(text, by=Argument("by"), name=name, known=", ".join(GROUPINGS)))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What is measured, and how many tokens at a time."""

    masks: int = option(
        1, "Random masks per sequence that a model trained with masks is asked about; 0 for none.", least=0, most=10000
    )
    by: tuple[str, ...] = option(
        (), f"Also rows for each group: {', '.join(GROUPINGS)}; repeatable.", unit="NAME", suggestions=GROUPINGS,
        judge=_known_grouping,
    )  # fmt: skip
    identity: float = option(
        0.5, "Identity from which sequences of a set are relatives, for --by cluster.", least=0.3, most=1.0
    )
    train: Path | None = option(
        None, "Sequences whose residue frequencies are the unigram baseline, and whose 5-grams the n-gram one.",
        unit="FILE", shown_default="frequencies of each set itself, which favours the baseline; no n-gram",
    )  # fmt: skip
    baseline: tuple[Path, ...] = option(
        (), "Baseline to put next to the model, by protperf baseline: an n-gram, or a model of a family; repeatable.",
        unit="DIR",
    )  # fmt: skip
    fail_above: float | None = option(
        None, "Exit with 1 if a perplexity of a whole set is above this.", unit="PPL", least=1.0, most=1e9
    )
    plot: Path | None = option(
        None, "Picture to write of perplexity by length and of calibration, .png or .svg; needs matplotlib.",
        unit="FILE",
    )  # fmt: skip
    seed: int = option(42, "Seed of the masks.", least=0, most=2**63 - 1)
    batch_tokens: int = batch_tokens_option()
    deterministic: bool = deterministic_option()

    def __post_init__(self) -> None:
        check(self)
        check_suffix("plot", self.plot, PICTURES)

    @property
    def groupings(self) -> tuple[str, ...]:
        """What is counted by: what the table shows, and what a plot needs."""
        return tuple(dict.fromkeys([*self.by, *(PLOTTED if self.plot is not None else ())]))

    def to_mapping(self) -> dict[str, Any]:
        """What the figures depend on, by name, for JSON."""
        paths = {"train": None if self.train is None else str(self.train), "baseline": list(map(str, self.baseline))}
        values = {**dataclasses.asdict(self), **paths}
        del values["plot"]
        return values
