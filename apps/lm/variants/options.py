"""What can be asked of scores of variants. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.direction import DIRECTIONS
from protperf.lm.options import REQUIRED, check, option
from protperf.lm.shared_options import batch_tokens_option, deterministic_option, model_option
from protperf.message import Argument, Message

STRATEGIES = ("auto", "wt", "masked", "masked-joint", "full")
INVALID = ("error", "nan")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StrategyOptions:
    """How a change is turned into a number, and how many tokens at a time."""

    strategy: str = option(
        "auto",
        "full: log-likelihood of the mutant minus that of the wild type, left to right; masked: log p(new) - log "
        "p(old) at each site masked alone, summed; masked-joint: all sites of a variant masked together; wt: "
        "nothing masked, one pass; auto: masked if the model was trained with masks only, else full.",
        choices=STRATEGIES,
    )
    direction: str = option(
        "auto",
        "Reading direction of full; both is the mean of the two readings; auto: both if the model was trained in both.",
        choices=("auto", *DIRECTIONS),
    )
    prior: Path | None = option(
        None,
        "The family, as an alignment or as sequences, which are then aligned, or a site or pairwise baseline of it: "
        "its log-odds are mixed with the scores, with a weight, a half at the least, from family members that are left "
        "out of it.",
        unit="FAMILY",
    )
    conservation: str = option(
        "auto",
        "on: multiply scores by how conserved the changed columns of the family are; off: leave them as they are; "
        "auto: on with a prior.",
        choices=("auto", "on", "off"),
    )
    batch_tokens: int = batch_tokens_option()
    deterministic: bool = deterministic_option()

    def __post_init__(self) -> None:
        check(self)

    def to_mapping(self) -> dict[str, Any]:
        """The values by name that decide scores; what the prior's file holds is another fact."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "prior"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """The models that are asked."""

    model: Path = model_option()
    also: tuple[Path, ...] = option((), "Another model; scores are the mean of all models named.", unit="MODEL")

    def __post_init__(self) -> None:
        check(self)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All models, in the order in which they were named."""
        return (self.model, *self.also)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OffsetOptions:
    """How the residues of the wild type are numbered."""

    offset: int = option(1, "Position of the first residue of the wild type.", least=-(10**9), most=10**9)

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WildTypeOptions:
    """The sequence that variants change."""

    wt: str = option(REQUIRED, "Wild type: a file with one record, or its residues.", unit="FASTA")

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VariantOptions:
    """What a table of variants holds, and what is added to it."""

    col: str | None = option(
        None, "Column of the variants.", unit="NAME", shown_default="mutant, variant, mutation or hgvs_pro"
    )
    seq_col: str | None = option(
        None,
        "Column of mutated sequences, to be scored in place of variants.",
        unit="NAME",
        shown_default="mutated_sequence where no column has variants",
    )
    label_col: str | None = option(
        None, "Column of measured values: Spearman, AUC, NDCG and MCC are printed.", unit="NAME"
    )
    bin_col: str | None = option(
        None,
        "Column of measured classes, 0 and 1, for AUC and MCC.",
        unit="NAME",
        shown_default="DMS_score_bin, else the labels are split at their median",
    )
    score_col: str = option("score", "Name of the column that is added.", unit="NAME")
    per_model: bool = option(False, "Also add a column for each model, where several are averaged.")
    invalid: str = option(
        "error", "A variant that has no score: error stops, nan leaves its score missing.", choices=INVALID
    )
    resamples: int = option(200, "Bootstrap samples for the standard errors of the figures.", least=2, most=10**6)
    seed: int = option(42, "Seed of the bootstrap samples.", least=0, most=2**63 - 1)

    def __post_init__(self) -> None:
        check(self)
        if self.col is not None and self.seq_col is not None:
            names = {"col": Argument("col"), "seq_col": Argument("seq_col")}
            raise ConfigError(Message("{col} and {seq_col} exclude each other; give one", **names))
        if self.bin_col is not None and self.label_col is None:
            names = {"bin_col": Argument("bin_col"), "label_col": Argument("label_col")}
            raise ConfigError(Message("{bin_col} needs {label_col}, the column of measured values", **names))

    def to_mapping(self) -> dict[str, Any]:
        """The values by name."""
        return dataclasses.asdict(self)


def choose_strategy(objective: str, strategy: str) -> str:
    """The strategy that was asked for, if a model of this objective was trained for it.

    Raises:
        ConfigError: it was not; the message names another one.
    """
    if strategy == "auto":
        return "masked" if objective == "masked" else "full"
    if strategy == "full" and objective == "masked":
        text = "this model was trained with masks only and cannot score full; use {remedy}"
        raise ConfigError(Message(text, remedy=Argument("strategy", "masked")))
    if strategy.startswith("masked") and objective == "causal":
        text = "this model reads left to right only and has no masks; use {remedy}"
        raise ConfigError(Message(text, remedy=Argument("strategy", "full")))
    return strategy
