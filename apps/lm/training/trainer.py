"""The training loop: a step is a function of its number, so a resumed run repeats the uninterrupted one bit for bit.

Nothing random is carried along: order, crops, masks, modes and dropout are drawn from counters keyed by the seed and
the step. The state that a checkpoint holds is weights, directions, both moments of the optimizer, the place in the
data, and the number of steps once it is known.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from protperf import __version__, build_info
from protperf.errors import CheckpointError, ConfigError
from protperf.lm.data import batches
from protperf.lm.data.store import TokenStore
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.network import CAUSAL, MASKED, Network
from protperf.lm.training import checkpoint, directory, durable, tensor_file
from protperf.lm.training.evaluate import validate
from protperf.lm.training.options import TrainOptions

_CALIBRATION = 0.08
"""Fraction of `--time` after which the number of steps is estimated, once."""
Report = Callable[[dict[str, Any]], None]


@dataclass
class Progress:
    """Where a run stands: all of it is stored in a checkpoint."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    total_steps: int | None = None
    best_loss: float = math.inf
    best_step: int = -1


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
    ) -> None:
        self.run, self.config, self.options, self.train, self.held = run, config, options, train, held
        self.network, self.warn = Network(config), warn
        decayed = [p for p in self.network.parameters() if p.dim() >= 2]
        others = [p for p in self.network.parameters() if p.dim() < 2]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), weight_decay=options.weight_decay)
        self.progress = Progress(total_steps=options.steps)
        self.unigram = train.unigram()
        self.stop_signal: int | None = None
        self._plan: tuple[int, list[Any]] | None = None
        self._last: dict[str, float] = {}

    # -- the loop -------------------------------------------------------------------------------------------------

    def fit(self, report: Report) -> dict[str, float]:
        """Train to the end or to a signal; returns the last validation's figures. The last step is always saved."""
        started = time.perf_counter() - self.progress.wall_s
        figures: dict[str, float] = {}
        with self._signals():
            while not self._finished() and self.stop_signal is None:
                loss, tokens = self._step()
                self.progress.wall_s = time.perf_counter() - started
                self._estimate_steps()
                self._log(loss, tokens, report)
                if self._due():
                    figures = self._checkpoint(report)
                    self.progress.wall_s = time.perf_counter() - started
            if self._last.get("step") != self.progress.step:
                figures = self._checkpoint(report)
        return figures

    def _finished(self) -> bool:
        total = self.progress.total_steps
        if total is None and self.options.epochs is not None:
            return self.progress.epoch + self._epoch_fraction() >= self.options.epochs
        late = self.options.time_s is not None and self.progress.wall_s >= self.options.time_s
        return late or (total is not None and self.progress.step >= total)

    def _epoch_fraction(self) -> float:
        return self.progress.batch / len(self._batches_of(self.progress.epoch))

    def _due(self) -> bool:
        every = self.options.checkpoint_every or max(100, (self.progress.total_steps or 1000) // 10)
        return self.progress.step % every == 0

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
            torch.manual_seed((o.seed * 1_000_003 + p.step) * 4099 + micro)
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

    def _batches_of(self, epoch: int) -> list[Any]:
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

    def _estimate_steps(self) -> None:
        """Fix the number of steps of a `--time` run, once, when enough of it has passed."""
        p, limit = self.progress, self.options.time_s
        if limit is None or p.total_steps is not None or p.wall_s < _CALIBRATION * limit or p.step < 5:
            return
        # A little is left for validation and saving.
        p.total_steps = max(p.step + 1, int(0.96 * limit / (p.wall_s / p.step)))

    # -- what it leaves -------------------------------------------------------------------------------------------

    def _log(self, loss: float, tokens: int, report: Report) -> None:
        p = self.progress
        if p.step % self.options.log_every and not self._finished():
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
        p = self.progress
        figures = validate(self.network, self.held, self.unigram, self.options.crop)
        if figures["val_loss"] < p.best_loss:
            p.best_loss, p.best_step = figures["val_loss"], p.step
        self._write_metrics({"step": p.step, **figures}, report)
        self.save()
        self._last["step"] = p.step
        return figures

    def save(self) -> None:
        """Write a checkpoint of this step; keep the last two and the best."""
        p = self.progress
        facts = {
            "version": __version__,
            "torch": torch.__version__,
            "isa": build_info()["isa"],
            "threads": torch.get_num_threads(),
            "data_sha256": self.train.fingerprint,
            "progress": {name: getattr(p, name) for name in p.__slots__} if hasattr(p, "__slots__") else vars(p).copy(),
            "options": self.options.to_mapping(),
        }
        if math.isinf(facts["progress"]["best_loss"]):
            facts["progress"]["best_loss"] = None
        # A step that is safe must not have lost the metrics that led to it.
        metrics = self.run / directory.METRICS
        if metrics.exists():
            durable.sync_file(metrics)
        checkpoint.save(
            self.run, p.step, self.config.to_mapping(), self.network.state_dict(), self._optimizer_tensors(), facts
        )
        # A later step that is there was found damaged when this run was resumed.
        newest = [number for number in checkpoint.steps(self.run) if number <= p.step][:2]
        for text in directory.prune(self.run, {*newest, p.best_step}):
            self.warn(text)

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        tensors = {}
        for parameter, state in self.optimizer.state.items():
            for key, value in state.items():
                tensors[f"{names[id(parameter)]}.{key}"] = value
        return tensors

    def restore(self, step: checkpoint.Step) -> None:
        """Continue from a verified step.

        Raises:
            ConfigError: other data or another configuration; CheckpointError: a file that does not fit.
        """
        manifest = step.manifest
        if manifest.get("data_sha256") != self.train.fingerprint:
            raise ConfigError(f"{step.path}: was trained on other sequences; resume with the same FASTA files")
        expected = {
            name: (tensor_file.type_name(t.dtype), tuple(t.shape)) for name, t in self.network.state_dict().items()
        }
        self.network.load_state_dict(tensor_file.read_tensors(step.path / "model.safetensors", expected))
        tensors = tensor_file.read_tensors(step.path / "trainer.safetensors", None)
        for name, parameter in self.network.named_parameters():
            try:
                found = {key: tensors.pop(f"{name}.{key}") for key in ("step", "exp_avg", "exp_avg_sq")}
            except KeyError as error:
                raise CheckpointError(
                    None, f"tensor {error.args[0]} is missing", os.fspath(step.path / "trainer.safetensors")
                ) from error
            self.optimizer.state[parameter] = found
        progress = dict(manifest["progress"])
        if progress["best_loss"] is None:
            progress["best_loss"] = math.inf
        self.progress = Progress(**progress)
        self._last = {"wall_s": self.progress.wall_s, "tokens": self.progress.tokens, "step": self.progress.step}

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
