"""What a training will take, from a few of its steps: number of steps, time, memory. Nothing is written."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from protperf.lm.data.store import Paths
from protperf.lm.model.config import ModelConfig
from protperf.lm.training import schedule
from protperf.lm.training.clock import Clock
from protperf.lm.training.input import Input
from protperf.lm.training.loop import Loop
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.run import Choose
from protperf.lm.training.trainer import Trainer

_WARM_STEPS, _TIMED_STEPS = 1, 3
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a training will take.

    Attributes:
        data: what is trained and validated on, in words; parameters: of the network.
        steps: of the optimizer; epochs: passes over the sequences; wall_s: seconds, reading and validations included.
        step_s: seconds of one step, of a few that were timed.
        memory_bytes: of this process at most so far; checkpoint_bytes: of one checkpoint.
    """

    data: str
    parameters: int
    steps: int
    epochs: float
    wall_s: float
    step_s: float
    memory_bytes: int
    checkpoint_bytes: int

    def facts(self) -> list[str]:
        """The same in words."""
        minutes = f"{self.wall_s / 60:.1f} minutes" if self.wall_s >= 60 else f"{self.wall_s:.0f} seconds"
        return [
            f"{self.data}; {self.parameters:,} parameters",
            f"about {self.steps:,} steps, {self.epochs:.1f} passes over the sequences, in {minutes}, "
            f"at {self.step_s:.2f} s per step",
            f"about {self.memory_bytes / _MIB:,.0f} MiB of memory and {self.checkpoint_bytes / _MIB:,.0f} MiB per "
            "checkpoint, of which up to three are kept",
        ]


def forecast(
    fasta: Paths,
    out: str | os.PathLike[str],
    config: ModelConfig,
    options: TrainOptions,
    *,
    validate: str | os.PathLike[str] | None = None,
    seq_col: str | None = None,
    choose: Choose | None = None,
    clock: Clock | None = None,
    device: torch.device | str = "cpu",
    warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> Forecast:
    """Read the sequences as `train_run` does, and make a few steps. Arguments and errors are those of `train_run`."""
    clock = clock or Clock()
    if validate is not None:
        options = dataclasses.replace(options, validate=None)
    parts, _ = Input.of(fasta, validate, seq_col).read(Path(out), options, warn)
    if choose is not None:
        config, options = choose(parts.train, options, warn)
    loop = Trainer(Path(out), config, options, parts.train, parts.held, device=device, clock=clock).loop
    started_s = clock.elapsed_s()
    step_s = _timed(loop)
    validation_s = _validation_s(loop)
    steps = options.steps or loop.feed.steps_of_epochs()
    if steps is None:
        steps = schedule.more_steps(options, 0, (options.time_s or 0.0) - started_s, step_s, validation_s)
    checkpoints = steps // schedule.checkpoint_interval(options, steps) + 1
    tensors = [*loop.network.state_dict().values(), *loop.optimizer.tensors().values()]
    return Forecast(
        parts.extent(),
        sum(parameter.numel() for parameter in loop.network.parameters()),
        steps,
        steps * options.accumulate / loop.feed.num_batches(0),
        started_s + steps * step_s + checkpoints * validation_s,
        step_s,
        # Kilobytes on Linux, bytes on macOS.
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def _timed(loop: Loop) -> float:
    """Seconds of a step."""
    for _ in range(_WARM_STEPS):
        loop.step()
    started_s = time.monotonic()
    for _ in range(_TIMED_STEPS):
        loop.step()
    return (time.monotonic() - started_s) / _TIMED_STEPS


def _validation_s(loop: Loop) -> float:
    """Seconds of a validation."""
    started_s = time.monotonic()
    if loop.validation.num_scored():
        loop.validation.measure(loop.network)
    return time.monotonic() - started_s
