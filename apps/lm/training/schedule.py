"""What the number of a step decides: its learning rate, whether a checkpoint is due, how many steps fit into a time."""

from __future__ import annotations

import math
from collections.abc import Callable

from protperf.lm.training.options import TrainOptions

_SHORTEST_STEP_S = 1e-6
"""A clock may be too coarse to see a step."""
_USED_FRACTION = 0.97
"""Of the time given: the last step, validation and checkpoint must not exceed it by chance."""

_LOWEST = 0.1
"""Learning rate of the last step in that of the peak."""
_COOLDOWN = 0.2
"""Share of the steps in which `wsd` falls. Source: Hägele et al. 2024, arXiv:2405.18392, section 3."""
_FALL: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "wsd": lambda done: min(1.0, (1 - done) / _COOLDOWN),
    "constant": lambda done: 1.0,
}
"""How much of the way down is left, by the share of the steps after the warm-up that is done."""


def learning_rate(options: TrainOptions, step: int, total_steps: int | None, steps_of_epochs: int | None) -> float:
    """Linear warm-up, then `options.schedule`, down to a tenth of the peak once the number of steps is known.

    Args:
        step: optimizer steps made so far.
        total_steps: optimizer steps of the run; None while a run of a given time has not fixed them, and for epochs.
        steps_of_epochs: optimizer steps of the epochs asked for; None if the run does not end after epochs.
    """
    warmup = min(options.warmup, (total_steps or 10 * options.warmup) // 10)
    if step < warmup:
        return options.lr * (step + 1) / (warmup + 1)
    total = total_steps or steps_of_epochs
    if total is None:
        return options.lr
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return options.lr * (_LOWEST + (1 - _LOWEST) * _FALL[options.schedule](done))


def checkpoint_interval(options: TrainOptions, total_steps: int) -> int:
    """Steps between two checkpoints."""
    return options.checkpoint_every or max(100, total_steps // 10)


def more_steps(options: TrainOptions, step: int, left_s: float, step_s: float, checkpoint_s: float) -> int:
    """How many steps after `step` fit into the time that is left, the checkpoints between and after them included.

    Args:
        left_s: seconds until the end of the time given; step_s: of one step; checkpoint_s: of a validation and a save.
    """
    left_s -= (1 - _USED_FRACTION) * (options.time_s or 0.0)
    fits, too_many = 0, max(0, int(left_s / max(step_s, _SHORTEST_STEP_S))) + 1
    while too_many - fits > 1:
        more = (fits + too_many) // 2
        if more * step_s + _checkpoints(options, step, step + more) * checkpoint_s <= left_s:
            fits = more
        else:
            too_many = more
    return fits


def _checkpoints(options: TrainOptions, step: int, total_steps: int) -> int:
    """Checkpoints after a step, the one at the end included."""
    interval = checkpoint_interval(options, total_steps)
    return total_steps // interval - step // interval + (total_steps % interval != 0)
