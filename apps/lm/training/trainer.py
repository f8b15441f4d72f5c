"""The training loop: a step is a function of its number, so a resumed run repeats the uninterrupted one bit for bit.

Nothing random is carried along: order, crops, masks, modes and dropout are drawn from counters keyed by the seed and
the step. The state that a checkpoint holds is weights, directions, both moments of the optimizer, the place in the
data, and the number of steps once it is known.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from protperf import __version__, build_info
from protperf.errors import ConfigError
from protperf.lm.data import batches
from protperf.lm.data.store import TokenStore
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.network import CAUSAL, MASKED, Network
from protperf.lm.storage import checkpoint, directory, durable, manifest, tensor_file
from protperf.lm.storage.expected import OPTIMIZER_STATE, ExpectedTensors
from protperf.lm.storage.plain_file import broken
from protperf.lm.training import resume
from protperf.lm.training.evaluate import validate
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.state import Progress, read_options, read_progress

_CALIBRATION = 0.08
"""Fraction of `--time` after which the number of steps is estimated, once."""
Report = Callable[[dict[str, Any]], None]


def here() -> dict[str, Any]:
    """What the last bits of a run depend on beside its options and data."""
    facts = {"version": __version__, "torch": str(torch.__version__), "isa": str(build_info()["isa"])}
    return {**facts, "threads": torch.get_num_threads()}


class Trainer:
    """One run: network, optimizer, data and progress."""

    def __init__(
        self,
        run: Path,
        config: ModelConfig,
        options: TrainOptions,
        train: TokenStore,
        held: TokenStore,
        warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        detail: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run, self.config, self.options, self.train, self.held = run, config, options, train, held
        self.network, self.warn, self.detail = Network(config), warn, detail
        detail(f"{sum(p.numel() for p in self.network.parameters()):,} parameters, attention {config.attention}")
        decayed = [p for p in self.network.parameters() if p.dim() >= 2]
        others = [p for p in self.network.parameters() if p.dim() < 2]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), weight_decay=options.weight_decay)
        for parameter in self.network.parameters():
            # As the optimizer would begin: so that a run stopped before its first step can be resumed as well.
            zeros = (torch.tensor(0.0), torch.zeros_like(parameter), torch.zeros_like(parameter))
            self.optimizer.state[parameter] = dict(zip(OPTIMIZER_STATE, zeros, strict=True))
        self.progress = Progress(total_steps=options.steps)
        self.unigram = train.unigram()
        self.stop_signal: int | None = None
        self._plan: tuple[int, batches.EpochPlan] | None = None
        self._last: dict[str, float] = {}

    # -- the loop -------------------------------------------------------------------------------------------------

    def fit(self, report: Report) -> dict[str, float]:
        """Train to the end or to a signal; returns the last validation's figures. The last step is always saved."""
        started = time.perf_counter() - self.progress.wall_s
        figures: dict[str, float] = {}
        # Dropout draws from torch's generator; the caller's own draws go on as if we had not been here.
        with torch.random.fork_rng(devices=[]), self._signals():
            while not self.finished() and self.stop_signal is None:
                loss, tokens = self._step()
                self.progress.wall_s = time.perf_counter() - started
                self._log(loss, tokens, report)
                if self._due() or self._calibrated():
                    figures = self._checkpoint(report)
                    self.progress.wall_s = time.perf_counter() - started
            if self._last.get("step") != self.progress.step:
                figures = self._checkpoint(report)
        return figures

    def finished(self) -> bool:
        total = self.progress.total_steps
        if total is None and self.options.epochs is not None:
            return self.progress.epoch + self._epoch_fraction() >= self.options.epochs
        if total is None:
            return self.options.time_s is not None and self.progress.wall_s >= self.options.time_s
        # Once the number of steps is known the clock decides nothing: that makes a resumed run the same run.
        return self.progress.step >= total

    def _epoch_fraction(self) -> float:
        return self.progress.batch / len(self._batches_of(self.progress.epoch))

    def _due(self) -> bool:
        return self.progress.step % self._rhythm(self.progress.total_steps or 1000) == 0

    def _rhythm(self, total: int) -> int:
        return self.options.checkpoint_every or max(100, total // 10)

    def _step(self) -> tuple[float, int]:
        """One optimizer step; returns the loss (nats a target) and the number of targets."""
        p, o = self.progress, self.options
        if o.redraw_interval and p.step and p.step % o.redraw_interval == 0:
            self.network.redraw(p.step // o.redraw_interval)
        self.network.train()
        mode = self._mode()
        parts = [self._prepared(mode, micro) for micro in range(o.accumulate)]
        targets = sum(len(part[3]) for part in parts)
        total = 0.0
        for micro, (tokens, borders, positions, wanted) in enumerate(parts):
            # Dropout is a function of the step too.
            torch.manual_seed(int(batches.generator(o.seed, 6, p.step, micro).integers(2**63)))
            logits = self.network(tokens, borders, mode)[positions]
            loss = functional.cross_entropy(logits, wanted, reduction="sum") / max(targets, 1)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), o.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        p.step += 1
        p.tokens += targets
        return total, targets

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine down to a tenth of the peak once the number of steps is known."""
        p, o = self.progress, self.options
        warmup = min(o.warmup, (p.total_steps or 10 * o.warmup) // 10)
        if p.step < warmup:
            return o.lr * (p.step + 1) / (warmup + 1)
        total = p.total_steps or self._steps_of_epochs()
        if total is None:
            return o.lr
        done = min(1.0, (p.step - warmup) / max(1, total - warmup))
        return o.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))

    def _steps_of_epochs(self) -> int | None:
        if self.options.epochs is None:
            return None
        return math.ceil(self.options.epochs * len(self._batches_of(0)) / self.options.accumulate)

    def _mode(self) -> int:
        if self.config.objective != "both":
            return MASKED if self.config.objective == "masked" else CAUSAL
        return int(batches.generator(self.options.seed, 4, self.progress.step).random() < 0.5)

    def _batches_of(self, epoch: int) -> batches.EpochPlan:
        if self._plan is None or self._plan[0] != epoch:
            o = self.options
            self._plan = (epoch, batches.epoch_plan(self.train.lengths, o.batch_tokens, o.crop, o.seed, epoch))
        return self._plan[1]

    def _prepared(self, mode: int, micro: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, borders, positions of targets and targets of the next batch."""
        p, o = self.progress, self.options
        indices = self._batches_of(p.epoch)[p.batch]
        batch = batches.build(self.train, indices, o.crop, o.seed, p.epoch)
        tokens = batch.tokens
        if mode == CAUSAL:
            positions, targets = batches.causal_targets(batch)
        else:
            tokens, positions, targets = batches.mask(batch, batches.generator(o.seed, 5, p.step, micro))
        p.batch += 1
        if p.batch == len(self._batches_of(p.epoch)):
            p.epoch, p.batch = p.epoch + 1, 0
        arrays = (tokens, batch.cu_seqlens, positions, targets)
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)  # type: ignore[return-value]

    def _calibrated(self) -> bool:
        """Whether enough of a `--time` run has passed to fix its number of steps."""
        p, limit = self.progress, self.options.time_s
        return limit is not None and p.total_steps is None and p.wall_s >= _CALIBRATION * limit and p.step >= 5

    def _fix_steps(self, validation_s: float) -> None:
        """Fix the number of steps of a `--time` run, once; the checkpoint that follows keeps it."""
        p, limit = self.progress, self.options.time_s
        if limit is None or not self._calibrated():
            return
        step_s, left = p.wall_s / p.step, 0.97 * limit - p.wall_s
        more = left / step_s
        for _ in range(8):
            # The more steps, the more validations, which take of their time.
            checkpoints = 1 + more // self._rhythm(int(p.step + more))
            more = (left - checkpoints * validation_s) / step_s
        p.total_steps = p.step + max(1, int(more))

    # -- what it leaves -------------------------------------------------------------------------------------------

    def _log(self, loss: float, tokens: int, report: Report) -> None:
        p = self.progress
        if p.step % self.options.log_every and not self.finished():
            return
        since = p.wall_s - self._last.get("wall_s", 0.0), p.tokens - self._last.get("tokens", 0)
        self._last |= {"wall_s": p.wall_s, "tokens": p.tokens}
        line = {
            "step": p.step,
            "loss": loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "tokens": p.tokens,
            "tokens_per_s": since[1] / max(since[0], 1e-9),
            "wall_s": p.wall_s,
        }
        self._write_metrics(line, report)

    def _write_metrics(self, line: dict[str, Any], report: Report) -> None:
        durable.append(self.run / directory.METRICS, (json.dumps(line) + "\n").encode())
        report({**line, "total_steps": self.progress.total_steps or self._steps_of_epochs()})

    def _checkpoint(self, report: Report) -> dict[str, float]:
        p, began = self.progress, time.perf_counter()
        figures = validate(self.network, self.held, self.unigram, self.options.crop)
        self._fix_steps(time.perf_counter() - began)
        if figures["val_loss"] < p.best_loss:
            p.best_loss, p.best_step = figures["val_loss"], p.step
        self._write_metrics({"step": p.step, **figures}, report)
        self.save()
        self._last["step"] = p.step
        told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        self.detail(f"step {p.step} saved after {p.wall_s:.1f} s: {told}; the best is step {p.best_step}")
        return figures

    def save(self) -> None:
        """Write a checkpoint of this step; keep the last two and the best."""
        p = self.progress
        facts = {
            **here(),
            "data_sha256": self.train.fingerprint,
            "validation_sha256": self.held.fingerprint,
            "progress": p.to_mapping(),
            "options": self.options.to_mapping(),
        }
        # A step that is safe must not have lost the metrics that led to it.
        metrics = self.run / directory.METRICS
        if metrics.exists():
            durable.sync_file(metrics)
        model, trainer = self.network.state_dict(), self._optimizer_tensors()
        checkpoint.save(self.run, p.step, self.config.to_mapping(), model, trainer, lambda: facts)
        # A later step that is there was found damaged when this run was resumed.
        newest = [number for number in checkpoint.steps(self.run) if number <= p.step][:2]
        for text in directory.prune(self.run, {*newest, p.best_step}):
            self.warn(text)

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{key}": self.optimizer.state[parameter][key]
            for name, parameter in self.network.named_parameters()
            for key in OPTIMIZER_STATE
        }

    def restore(self, step: checkpoint.Step) -> None:
        """Continue from a verified step.

        Raises:
            ConfigError: other data, or options that contradict the run; CheckpointError: a file that does not fit.
        """
        resume.agree(step, self.config, self.options)
        facts, progress = manifest.read_facts(step), read_progress(step)
        self._refuse_other_data(facts)
        if progress.batch >= len(self._batches_of(progress.epoch)):
            raise broken(step.path / checkpoint.MANIFEST, f"has no batch {progress.batch} in epoch {progress.epoch}")
        note = resume.new_end(self.run, progress, read_options(step), self.options)
        layouts = ExpectedTensors(self.config)
        path = step.path / "trainer.safetensors"
        moments = tensor_file.read_tensors(path, layouts.trainer)
        self.network.load_state_dict(tensor_file.read_tensors(step.path / "model.safetensors", layouts.network))
        for name, parameter in self.network.named_parameters():
            state = {key: moments[f"{name}.{key}"] for key in OPTIMIZER_STATE}
            if not 0 <= float(state["step"]) <= progress.step:
                raise broken(path, f"has a step of {name} that the run has not made")
            self.optimizer.state[parameter] = state
        self.progress = progress
        self._last = {"wall_s": progress.wall_s, "tokens": progress.tokens, "step": progress.step}
        for text in (note, resume.differences(facts, here())):
            if text is not None:
                self.warn(text if text is note else f"warning: {step.path}: {text}")

    def _refuse_other_data(self, facts: dict[str, Any]) -> None:
        for name, store, what in (
            ("data_sha256", self.train, "was trained on other sequences; resume with the same FASTA files"),
            ("validation_sha256", self.held, "is validated on other sequences; resume with the same --validate"),
        ):
            if facts[name] != store.fingerprint:
                raise ConfigError(f"{self.run}: {what}")

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the loop after the step; only the main thread can ask for that."""

        def note(number: int, _: Any) -> None:
            self.stop_signal = number

        try:
            before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
