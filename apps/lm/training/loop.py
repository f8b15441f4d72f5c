"""The training loop: batches in, metrics out. It touches no file and handles no signal.

A step is a function of its number, so a resumed run repeats the uninterrupted one bit for bit. Nothing random is
carried along: order, crops, masks, modes and dropout are drawn from counters keyed by the seed and the step. The state
is the weights, their average if there is one, the directions, the moments of the optimizer, the place in the data, and
the number of steps once it is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from protperf.errors import DivergenceError
from protperf.lm.model.network import Network
from protperf.lm.training import schedule
from protperf.lm.training.average import Average
from protperf.lm.training.clock import Clock
from protperf.lm.training.feed import Feed, MicroBatch
from protperf.lm.training.memory import halved, is_exhausted
from protperf.lm.training.optimizer import Optimizer, not_finite
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.progress import Progress
from protperf.lm.training.validation import Validation
from protperf.message import Argument, Message

_MEASURED_STEPS, _MEASURED_FRACTION = 5, 0.08
"""Steps, and fraction of `--time` spent in steps, after which the number of steps of a timed run is fixed, once."""


@dataclass(frozen=True, slots=True)
class MetricsLine:
    """A line of metrics, and the number of steps of the whole run if it is known."""

    values: dict[str, Any]
    total_steps: int | None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state has to be kept now, before the loop is asked for its next event.

    Attributes:
        progress: gives the progress to keep. To be called after everything else has been written: a timed run then
            fixes its number of steps, and accounts for the time that a checkpoint takes.
        figures: of the validation of this step; None if there was none.
    """

    progress: Callable[[], Progress]
    figures: dict[str, float] | None


@dataclass(slots=True)
class _Pace:
    """Steps made since the run was started or resumed, the seconds they took, and when the first of them began."""

    start_s: float = 0.0
    steps: int = 0
    steps_s: float = 0.0


class Loop:
    """Network, optimizer and place in the data, and how they move on."""

    def __init__(
        self, network: Network, optimizer: Optimizer, feed: Feed, validation: Validation, options: TrainOptions,
        clock: Clock, warn: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        self.network, self.optimizer, self.feed, self.validation = network, optimizer, feed, validation
        self.options, self.clock, self.warn = options, clock, warn
        self.average = Average(network, options.ema) if options.ema else None
        self.progress = Progress(total_steps=options.steps)
        self._pace = _Pace()
        self._logged_steps_s, self._logged_tokens = 0.0, 0
        self._kept_step = -1
        # How often each batch is divided in two, because memory ran out in this process.
        self._halvings = 0
        self._checkpoint_start_s: float | None = None

    def restore(self, progress: Progress) -> None:
        """Continue from stored progress. The caller restores the weights and the optimizer."""
        self.progress, self._kept_step = progress, progress.step
        self._logged_tokens = progress.tokens
        self.clock.resume(progress.wall_s)

    def run(self, stop: Callable[[], bool]) -> Iterator[MetricsLine | Checkpoint]:
        """Train to the end, or until `stop` is true after a step. The last event is the checkpoint of the last step.

        Raises:
            DivergenceError: a loss, a gradient or a weight is not finite. No event offers such a state.
        """
        self._pace.start_s = self.clock.elapsed_s()
        while not self.finished() and not stop():
            loss, _ = self.step()
            if self.progress.step % self.options.log_every == 0 or self.finished():
                yield self._training_line(loss)
            if self._is_due() or self._can_fix_steps():
                yield from self._validated()
        if self._kept_step != self.progress.step:
            # A scheduler that stops a run kills it soon after: there may be no time for a validation.
            yield from self._validated() if self.finished() else self._kept(None)

    def finished(self) -> bool:
        """Whether the run has come to its end."""
        p, o = self.progress, self.options
        if o.patience and p.stale >= o.patience:
            return True
        if p.total_steps is not None:
            # Once the number of steps is known the clock decides nothing: that makes a resumed run the same run.
            return p.step >= p.total_steps
        if o.epochs is not None:
            return self.feed.epochs_done(p) >= o.epochs
        return o.time_s is not None and p.step > 0 and p.wall_s >= o.time_s

    def step(self) -> tuple[float, int]:
        """One optimizer step; returns the loss (nats per target) and the number of targets.

        Raises:
            DivergenceError: the loss, a gradient or a weight is not finite.
        """
        started_s = self.clock.elapsed_s()
        p, o = self.progress, self.options
        if o.redraw_interval and p.step and p.step % o.redraw_interval == 0:
            self.network.redraw(p.step // o.redraw_interval)
        loss, targets = self._backward()
        self._require_finite("loss", loss)
        self._require_finite("gradient norm", self.optimizer.clip())
        self.optimizer.step(schedule.learning_rate(o, p.step, p.total_steps, self.feed.steps_of_epochs()))
        if (name := not_finite(self.network.named_parameters())) is not None:
            raise self._divergence(f"step {p.step + 1} made {name} not finite")
        p.step += 1
        if self.average is not None:
            self.average.update(p.step)
        p.tokens += targets
        p.wall_s = self.clock.elapsed_s()
        self._pace.steps += 1
        self._pace.steps_s += p.wall_s - started_s
        return loss, targets

    def _backward(self) -> tuple[float, int]:
        """Compute the gradients of one step; returns the loss (nats per target) and the number of targets."""
        p = self.progress
        self.network.train()
        device = self.network.embedding.weight.device
        step_mode = self.feed.mode(p.step)
        parts = [self.feed.next(p, step_mode, micro) for micro in range(self.options.accumulate)]
        for _ in range(self._halvings):
            parts = halved(parts)
        # Dropout draws from torch's generator; the caller's own draws go on as if nothing had been drawn here.
        with _forked_generator(device):
            return self._gradients(parts, step_mode), sum(len(part.targets) for part in parts)

    def _gradients(self, parts: list[MicroBatch], mode: int) -> float:
        """Compute the gradients of some batches, in smaller ones where memory runs out; returns the loss."""
        total, weight = 0.0, 1 / max(sum(len(part.targets) for part in parts), 1)
        try:
            for micro, part in enumerate(parts):
                torch.manual_seed(self.feed.dropout_seed(self.progress.step, micro))
                loss = self.network.loss(part.tokens, part.cu_seqlens, mode, part.positions, part.targets, weight)
                loss.backward()
                total += loss.item()
            return total
        except (MemoryError, RuntimeError) as error:
            smaller = halved(parts)
            if not is_exhausted(error) or len(smaller) == len(parts):
                raise
        # Some of the gradients are of batches that are computed again.
        for parameter in self.network.parameters():
            parameter.grad = None
        self._halvings += 1
        text = "note: step {step} needs more memory than there is; from here on batches are computed in {parts} parts, "
        text += "which gives other last bits; a smaller {batch_tokens} needs less memory"
        facts = {"step": self.progress.step + 1, "parts": 2**self._halvings}
        self.warn(Message(text, **facts, batch_tokens=Argument("batch_tokens")))
        return self._gradients(smaller, mode)

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise self._divergence(f"the {what} of step {self.progress.step + 1} is {value}")

    def _divergence(self, what: str) -> DivergenceError:
        o = self.options
        text = "{what}; try a lower {lr} (it is {lr_now:g}), a longer {warmup} ({warmup_now}) or a smaller {clip} "
        text += "({clip_now:g})"
        names = {name: Argument(name) for name in ("lr", "warmup", "clip")}
        return DivergenceError(Message(text, what=what, lr_now=o.lr, warmup_now=o.warmup, clip_now=o.clip, **names))

    def _training_line(self, loss: float) -> MetricsLine:
        p = self.progress
        took_s, tokens = self._pace.steps_s - self._logged_steps_s, p.tokens - self._logged_tokens
        self._logged_steps_s, self._logged_tokens = self._pace.steps_s, p.tokens
        values = {"step": p.step, "loss": loss, "lr": self.optimizer.learning_rate, "tokens": p.tokens}
        return self._line({**values, "tokens_per_s": tokens / max(took_s, 1e-9), "wall_s": p.wall_s})

    def _line(self, values: dict[str, Any]) -> MetricsLine:
        return MetricsLine(values, self.progress.total_steps or self.feed.steps_of_epochs())

    def _is_due(self) -> bool:
        p = self.progress
        return p.step % schedule.checkpoint_interval(self.options, p.total_steps or 1000) == 0

    def _validated(self) -> Iterator[MetricsLine | Checkpoint]:
        """Validate if anything is held out, then offer the state to be kept."""
        p = self.progress
        self._checkpoint_start_s = self.clock.elapsed_s()
        if not self.validation.num_scored():
            yield from self._kept(None)
            return
        with self.average.in_network() if self.average is not None else nullcontext():
            figures = self.validation.measure(self.network)
        if not math.isfinite(figures["val_loss"]):
            raise self._divergence(f"the validation loss after step {p.step} is {figures['val_loss']}")
        p.stale += 1
        if figures["val_loss"] < p.best_loss:
            p.best_loss, p.best_step, p.stale = figures["val_loss"], p.step, 0
        yield self._line({"step": p.step, **figures})
        yield from self._kept(figures)

    def _kept(self, figures: dict[str, float] | None) -> Iterator[Checkpoint]:
        p = self.progress
        averaged = self.average.weights if self.average is not None else {}
        stored = (*self.network.state_dict().items(), *averaged.items(), *self.optimizer.tensors().items())
        if (name := not_finite(stored)) is not None:
            raise self._divergence(f"{name} is not finite after step {p.step}")
        yield Checkpoint(self._settled, figures)
        if self._checkpoint_start_s is not None:
            # Whoever keeps no checkpoints has not asked for the progress.
            self._settled()
        self._kept_step = p.step

    def _settled(self) -> Progress:
        """The progress to store in a checkpoint. A timed run fixes its number of steps here, once."""
        p = self.progress
        now_s = self.clock.elapsed_s()
        if self._can_fix_steps() and self._checkpoint_start_s is not None:
            left_s = (self.options.time_s or 0.0) - now_s
            step_s = self._pace.steps_s / self._pace.steps
            more = schedule.more_steps(self.options, p.step, left_s, step_s, now_s - self._checkpoint_start_s)
            p.total_steps = p.step + more
        self._checkpoint_start_s = None
        p.wall_s = now_s
        return p

    def _can_fix_steps(self) -> bool:
        """Whether enough of a timed run has passed to fix its number of steps."""
        p, pace, limit_s = self.progress, self._pace, self.options.time_s
        if limit_s is None or p.total_steps is not None or not pace.steps:
            return False
        measured = pace.steps_s >= _MEASURED_FRACTION * (limit_s - pace.start_s)
        # The steps of a large model may take so long that five of them would use up the time.
        return (measured and pace.steps >= _MEASURED_STEPS) or p.wall_s >= limit_s / 2


def _forked_generator(device: torch.device) -> AbstractContextManager[Any]:
    """Restore the state of torch's random numbers at the end, also that of a CUDA device."""
    if device.type == "cuda":
        return torch.random.fork_rng(devices=[device], device_type="cuda")
    return torch.random.fork_rng(devices=[])
