"""Random directions drawn anew in a whole model, by the number of the optimizer step alone; never in evaluation."""

from __future__ import annotations

from typing import overload

import torch

from protperf import _arguments
from protperf.errors import ConfigError, DtypeError
from protperf.torch.nn.draw_key import MAX_DRAW, DrawKey
from protperf.torch.nn.favor import FavorAttention

__all__ = ["redraw_attention"]


@torch.library.custom_op("protperf::redraw_", mutates_args=("omega", "draw_key"))
def _redraw(
    omega: torch.Tensor, draw_key: torch.Tensor, step: torch.Tensor, interval: int, sampler: str, norm: str
) -> None:
    """Draw number `step // interval` of the key's seed in the place of omega, where that is not its number already.

    Sampler and norm are for a key from before it held them.
    """
    key = DrawKey.unpacked(draw_key.tolist())
    if key is None:
        raise ConfigError("the module holds directions that it did not draw; call it once outside of a graph")
    draw = int(step) // interval
    if not 0 <= draw <= MAX_DRAW:
        raise ConfigError(f"step is {int(step)}; it must be at least 0, and step // interval less than 2^32")
    if draw != key.draw:
        new = key._replace(draw=draw, kind=key.kind or (sampler, norm))
        new.fill(omega)
        draw_key.copy_(torch.tensor(new.packed()))


@overload
def redraw_attention(model: torch.nn.Module, step: int, interval: int) -> int: ...


@overload
def redraw_attention(model: torch.nn.Module, step: torch.Tensor, interval: int) -> torch.Tensor: ...


def redraw_attention(model: torch.nn.Module, step: int | torch.Tensor, interval: int) -> int | torch.Tensor:
    """Give every `FavorAttention` in training draw number `step // interval` of its seed, and return that number.

    A module in evaluation (`model.eval()`) keeps its directions, so that two answers of it never differ; it takes the
    draw of the step at the next call in training. The number is that of the step, also where no module has taken it.

    Call it between optimizer steps, as often as you like: nothing is drawn while the number stays. A number says all
    that there is to know, so ranks agree without a message, and a run that is resumed goes on with the draws of the one
    that was saved.

    It may stand in a function that `torch.compile` makes one graph of. Give the step as a tensor there, so that one
    graph serves every step; the number is then a tensor too.

    Args:
        step: of the optimizer, from 0; or a tensor of one integer.
        interval: steps between draws; 0 never draws anew.

    Raises:
        DtypeError, ConfigError: not an integer, or below 0.
    """
    interval = _arguments.check_integer("interval", interval)
    if interval < 0:
        raise ConfigError(f"interval is {interval}; it must be at least 0")
    if isinstance(step, torch.Tensor):
        return _redraw_by(model, step, interval)
    step = _arguments.check_integer("step", step)
    if step < 0:
        raise ConfigError(f"step is {step}; it must be at least 0")
    draw = step // interval if interval else 0
    for module in _drawing(model) if interval else ():
        module.check_omega()
        if module.draw != draw:
            module.redraw(draw)
    return draw


def _redraw_by(model: torch.nn.Module, step: torch.Tensor, interval: int) -> torch.Tensor:
    if step.dim() or step.is_floating_point() or step.is_complex() or step.dtype == torch.bool:
        raise DtypeError(f"step is a tensor of shape {list(step.shape)} and type {step.dtype}; give one integer")
    if not interval:
        return torch.zeros_like(step)
    for module in _drawing(model):
        module.check_omega()
        _redraw(module.omega, module.draw_key, step, interval, module.sampler, module.norm)
    return step // interval


def _drawing(model: torch.nn.Module) -> list[FavorAttention]:
    """The modules that take new directions."""
    return [x for x in model.modules() if isinstance(x, FavorAttention) and x.training and x.projection]
