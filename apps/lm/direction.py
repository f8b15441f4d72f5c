"""In which direction a protein is read. Imports nothing heavy.

The reverse reading of a protein is that of its framed tokens reversed, special ones included: EOS x_L ... x_1 BOS. Both
readings give each residue a probability; what is read in both directions has the mean of the two log-probabilities.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from protperf.errors import ConfigError
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.model.config import ModelConfig

DIRECTIONS = ("forward", "reverse", "both")


def is_trained_in_both(config: ModelConfig) -> bool:
    """Whether a model was trained in both directions."""
    return config.directions == "both"


def choose_direction(config: ModelConfig, direction: str) -> str:
    """The direction asked for; `auto` is both where the model was trained in both.

    Raises:
        ConfigError: the model was not trained in it.
    """
    if direction == "auto":
        return "both" if is_trained_in_both(config) else "forward"
    if direction != "forward" and not is_trained_in_both(config):
        text = (
            "this model reads forward only and cannot score {direction}; use {remedy}, or train one with "
            "protperf train --directions both"
        )
        raise ConfigError(Message(text, direction=direction, remedy=Argument("direction", "forward")))
    return direction


def refuse_direction(direction: str, left_to_right: Argument) -> ConfigError:
    """The error for a direction where a residue is predicted from both sides at once.

    Args:
        left_to_right: the method or strategy that reads in a direction.
    """
    text = "{direction} is for {left_to_right}; with masks a model sees both sides at once"
    return ConfigError(Message(text, direction=Argument("direction", direction), left_to_right=left_to_right))
