"""Random directions drawn anew in a whole model, by the number of the optimizer step alone; never in evaluation."""

from __future__ import annotations

import torch

from protperf import _arguments
from protperf.errors import ConfigError
from protperf.torch.nn.favor import FavorAttention

__all__ = ["redraw_attention"]


def redraw_attention(model: torch.nn.Module, step: int, interval: int) -> int:
    """Give every `FavorAttention` in training draw number `step // interval` of its seed, and return that number.

    A module in evaluation (`model.eval()`) keeps its directions, so that two answers of it never differ; it takes the
    draw of the step at the next call in training. The number is that of the step, also where no module has taken it.

    Call it between optimizer steps, as often as you like: nothing is drawn while the number stays. A number says all
    that there is to know, so ranks agree without a message, and a run that is resumed goes on with the draws of the one
    that was saved.

    Args:
        step: of the optimizer, from 0.
        interval: steps between draws; 0 never draws anew.

    Raises:
        DtypeError, ConfigError: not an integer, or below 0.
    """
    step, interval = _arguments.check_integer("step", step), _arguments.check_integer("interval", interval)
    for name, number in (("step", step), ("interval", interval)):
        if number < 0:
            raise ConfigError(f"{name} is {number}; it must be at least 0")
    draw = step // interval if interval else 0
    for module in model.modules():
        if interval and isinstance(module, FavorAttention) and module.training and module.projection:
            module.check_omega()
            if module.draw != draw:
                module.redraw(draw)
    return draw
