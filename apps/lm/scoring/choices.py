"""What a scoring can be asked for. Imports nothing heavy: a command refuses a wrong word before it loads a model."""

from __future__ import annotations

from collections.abc import Callable

from protperf.errors import ConfigError

COLUMNS: dict[str, type] = {
    "n": int,
    "id": str,
    "len": int,
    "scored": int,
    "ll": float,
    "ll_per_residue": float,
    "ppl": float,
    "method": str,
    "flags": str,
}
"""Columns of a table of scores and their types."""
METHODS = ("auto", "ll", "pll")
DIRECTIONS = ("forward", "reverse", "both")
FORMATS = ("tsv", "csv", "jsonl", "parquet")
BATCH_TOKENS = 4096
"""Tokens of one pass where nothing else is asked for: more is no faster on a CPU."""

Progress = Callable[[int], None]
"""Called now and then with how much was done since: tokens that the model has read, where nothing else is said."""


def nobody(count: int) -> None:
    """Nobody looks at the progress."""


def check_method(method: str) -> None:
    """Check the name of a method.

    Raises:
        ConfigError: unknown.
    """
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; choose one of {', '.join(METHODS)}")


def choose_method(objective: str, method: str) -> str:
    """`ll` or `pll`: what was asked for, where a model of this objective was trained for it.

    Raises:
        ConfigError: naming the other method.
    """
    check_method(method)
    if method == "auto":
        return "pll" if objective == "masked" else "ll"
    if method == "ll" and objective == "masked":
        raise ConfigError("this model was trained with masks only and has no ll; use --method pll")
    if method == "pll" and objective == "causal":
        raise ConfigError("this model reads left to right only and has no pll; use --method ll")
    return method


def choose_direction(direction: str) -> None:
    """Check the reading direction.

    Raises:
        ConfigError: unknown, or one that the model was not trained for.
    """
    if direction not in DIRECTIONS:
        raise ConfigError(f"direction is {direction!r}; choose one of {', '.join(DIRECTIONS)}")
    if direction != "forward":
        raise ConfigError(f"this model reads forward only and cannot score {direction}; use --direction forward")


def check_batch_tokens(batch_tokens: int) -> None:
    """Check the size of a batch.

    Raises:
        ConfigError: below 1.
    """
    if batch_tokens < 1:
        raise ConfigError(f"batch_tokens is {batch_tokens}; it must be at least 1")
