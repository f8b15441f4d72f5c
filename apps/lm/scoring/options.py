"""What a scoring can be asked for. Imports nothing heavy: a command refuses a wrong word before it loads a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.errors import ConfigError
from protperf.lm.direction import DIRECTIONS, choose_direction, refuse_direction
from protperf.lm.named_files import PICTURES, check_suffix
from protperf.lm.options import check, option
from protperf.lm.shared_options import BATCH_TOKENS as BATCH_TOKENS
from protperf.lm.shared_options import batch_tokens_option, deterministic_option, shard_option
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.model.config import ModelConfig

METHODS = ("auto", "ll", "pll", "pll-fast")
FAST_PASSES = 16
"""Passes of `pll-fast` over one sequence: each masks every 16th residue, fewer than were masked in training."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What is computed, and how many tokens at a time."""

    method: str = option(
        "auto",
        "ll: each residue given those before it; pll: each given all others, one pass per residue; pll-fast: the same "
        "with every 16th residue masked together, 16 passes per sequence; auto: ll, or pll if the model was trained "
        "with masks only.",
        choices=METHODS,
    )
    direction: str = option(
        "forward", "Reading direction of ll; reverse and both need a model trained in both.", choices=DIRECTIONS
    )
    shard: str | None = shard_option()
    per_residue: bool = option(False, "One row per residue in place of one per sequence.")
    batch_tokens: int = batch_tokens_option()
    deterministic: bool = deterministic_option()

    def __post_init__(self) -> None:
        check(self)

    def to_mapping(self) -> dict[str, Any]:
        """The values by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOutput:
    """What a table of scores of files has besides these, and what is drawn of it."""

    carry: tuple[str, ...] = option(
        (), "Column of the input to carry on, next to the scores, as it is: one of a table, or description, the rest "
        "of the header of FASTA; repeatable.", unit="NAME",
    )  # fmt: skip

    plot: Path | None = option(
        None, "With --per-residue, picture to write of the scores along the first sequences, .png or .svg; needs "
        "matplotlib.", unit="FILE",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check(self)
        check_suffix("plot", self.plot, PICTURES)


def choose_reading(config: ModelConfig, options: ScoreOptions) -> str:
    """The method and the direction as a table names them: `ll`, `ll-reverse`, `ll-both`, `pll` or `pll-fast`.

    Raises:
        ConfigError: a method or a direction that the model was not trained for, or that exclude each other.
    """
    method = choose_method(config.objective, options.method)
    if options.direction == "forward":
        return method
    if method != "ll":
        raise refuse_direction(options.direction, Argument("method", "ll"))
    return f"ll-{choose_direction(config, options.direction)}"


def choose_method(objective: str, method: str) -> str:
    """`ll`, `pll` or `pll-fast`: what was asked for, if a model of this objective was trained for it.

    Raises:
        ConfigError: it was not; the message names the other method.
    """
    if method == "auto":
        return "pll" if objective == "masked" else "ll"
    if method == "ll" and objective == "masked":
        text = "this model was trained with masks only and has no ll; use {remedy}"
        raise ConfigError(Message(text, remedy=Argument("method", "pll")))
    if method.startswith("pll") and objective == "causal":
        text = "this model reads left to right only and has no {method}; use {remedy}"
        raise ConfigError(Message(text, method=method, remedy=Argument("method", "ll")))
    return method
