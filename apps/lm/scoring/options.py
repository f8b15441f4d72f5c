"""What a scoring can be asked for. Imports nothing heavy: a command refuses a wrong word before it loads a model."""

from __future__ import annotations

import dataclasses
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.options import check, option
from protperf.lm.shared_options import BATCH_TOKENS as BATCH_TOKENS
from protperf.lm.shared_options import batch_tokens_option, deterministic_option
from protperf.message import Argument, Message

METHODS = ("auto", "ll", "pll")
DIRECTIONS = ("forward", "reverse", "both")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions:
    """What is computed, and how many tokens at a time."""

    method: str = option(
        "auto",
        "ll: each residue given those before it; pll: each given all others, one pass per residue; auto: the one that "
        "the model was trained for, ll if it was trained for both.",
        choices=METHODS,
    )
    direction: str = option("forward", "Reading direction: forward.", choices=DIRECTIONS)
    batch_tokens: int = batch_tokens_option()
    deterministic: bool = deterministic_option()

    def __post_init__(self) -> None:
        check(self)
        if self.direction != "forward":
            text = "this model reads forward only and cannot score {direction}; use {remedy}"
            remedy = Argument("direction", "forward")
            raise ConfigError(Message(text, direction=self.direction, remedy=remedy))

    def to_mapping(self) -> dict[str, Any]:
        """The values by name."""
        return dataclasses.asdict(self)


def choose_method(objective: str, method: str) -> str:
    """`ll` or `pll`: what was asked for, if a model of this objective was trained for it.

    Raises:
        ConfigError: it was not; the message names the other method.
    """
    if method == "auto":
        return "pll" if objective == "masked" else "ll"
    if method == "ll" and objective == "masked":
        text = "this model was trained with masks only and has no ll; use {remedy}"
        raise ConfigError(Message(text, remedy=Argument("method", "pll")))
    if method == "pll" and objective == "causal":
        text = "this model reads left to right only and has no pll; use {remedy}"
        raise ConfigError(Message(text, remedy=Argument("method", "ll")))
    return method
