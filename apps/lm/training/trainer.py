"""One run on disk: the loop, with the metrics and checkpoints that it leaves and the signals that end it."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from protperf import __version__, build_info, gpu
from protperf.errors import ConfigError, DeviceError, DivergenceError
from protperf.lm.data.store import TokenStore
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.network import Network
from protperf.lm.storage import checkpoint, directory, durable, manifest, tensor_file
from protperf.lm.storage.plain_file import broken
from protperf.lm.training import resume, signals
from protperf.lm.training.clock import Clock
from protperf.lm.training.feed import Feed
from protperf.lm.training.loop import Checkpoint, Loop, MetricsLine
from protperf.lm.training.low_rank import LowRankOptimizer
from protperf.lm.training.optimizer import Optimizer
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.progress import read_progress
from protperf.lm.training.state import expected_tensors, read_options
from protperf.lm.training.tensorboard import TensorBoardLog
from protperf.lm.training.validation import Validation
from protperf.lm.watch import Watch
from protperf.message import Argument, Message

Report = Callable[[dict[str, Any]], None]


def environment(device: torch.device) -> dict[str, Any]:
    """What the last bits of a run depend on, besides its options and data."""
    facts = {"version": __version__, "torch": str(torch.__version__), "isa": str(build_info()["isa"])}
    return {**facts, "device": device.type, "threads": torch.get_num_threads()}


class Trainer:
    """A run directory and the loop whose run it holds."""

    def __init__(
        self,
        run: Path,
        config: ModelConfig,
        options: TrainOptions,
        train: TokenStore,
        held: TokenStore,
        warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
        detail: Callable[[str], None] = lambda text: None,
        *,
        device: torch.device | str = "cpu",
        clock: Clock | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.run, self.config, self.options = run, config, options
        self.warn, self.detail, self.device = warn, detail, torch.device(device)
        self._check_precision()
        self._check_attention()
        network = Network(config, options.engine, options.precision, options.attention_backend).to(self.device)
        detail(f"{sum(p.numel() for p in network.parameters()):,} parameters, attention {config.attention}")
        validation = Validation(
            held, train.unigram(), config.objective, options.crop, options.batch_tokens, self.device,
            config.directions,
        )  # fmt: skip
        detail("validation averages both directions" if config.directions == "both" else "validation reads forward")
        feed = Feed(train, options, config.objective, self.device, config.directions, watch)
        optimizer = (
            LowRankOptimizer(network, options) if options.lora else Optimizer(network.named_parameters(), options)
        )
        self.loop = Loop(network, optimizer, feed, validation, options, clock or Clock(), warn)
        # Of all the data, so computed once.
        self._digests = {"data_sha256": train.fingerprint, "validation_sha256": held.fingerprint}
        # Where the run comes from, as `origin` describes it; that of a resumed run is in its checkpoint.
        self.origin: dict[str, Any] | None = None
        self.stop_signal: int | None = None
        self._log: TensorBoardLog | None = None

    def _check_precision(self) -> None:
        """Refuse bf16 where nothing computes it; say where it brings nothing."""
        if self.options.precision == "f32":
            return
        if self.device.type != "cpu":
            text = "{precision} is bf16, which is computed on a CPU alone; leave it out on {device}"
            raise ConfigError(Message(text, precision=Argument("precision"), device=self.device.type))
        if build_info()["bf16"] == "as float32":
            text = "this processor multiplies bf16 no faster than float32, in which nothing is rounded"
            self.warn(f"warning: {text}")

    def _check_attention(self) -> None:
        """Refuse a GPU for exact attention, for tensors that lie on another device, or where there is none."""
        if self.options.attention_backend == "auto":
            return
        backend = Argument("attention_backend", self.options.attention_backend)
        if self.config.attention == "exact":
            text = "{backend} computes linear attention alone; leave it out, or choose a feature map with {attention}"
            raise ConfigError(Message(text, backend=backend, attention=Argument("attention")))
        if self.device.type != "cpu":
            text = "{backend} takes tensors from the CPU; leave {device} out"
            raise ConfigError(Message(text, backend=backend, device=Argument("device", self.device.type)))
        if (fault := gpu.fault()) is not None:
            raise DeviceError(Message("{backend}: {fault}", backend=backend, fault=fault))

    def fit(self, report: Report) -> dict[str, float]:
        """Train to the end or to a signal; the last step is always saved.

        Returns the figures of the best validation, or of the last one where an earlier session had a better one.

        Raises:
            DivergenceError: a number is not finite; the message says which step was kept last.
        """
        figures: dict[str, float] = {}
        last: dict[str, float] = {}
        try:
            with self._logging(), signals.noted(self._stop):
                for event in self.loop.run(lambda: self.stop_signal is not None):
                    if isinstance(event, MetricsLine):
                        self._write_metrics(event, report)
                    else:
                        last = event.figures or last
                        figures = last if self.loop.progress.stale == 0 else figures
                        self._save(event)
        except DivergenceError as error:
            text = "{run}: {error}; {kept}"
            raise DivergenceError(Message(text, run=self.run, error=error.args[0], kept=self._last_kept())) from error
        return figures or last

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        if self.options.logger != "tensorboard":
            yield
            return
        with contextlib.closing(TensorBoardLog(self.run, self.loop.progress.step)) as self._log:
            yield
        self._log = None

    def _stop(self, number: int) -> None:
        self.stop_signal = number

    def _last_kept(self) -> str:
        numbers = checkpoint.steps(self.run)
        return (
            f"step-{numbers[0]}, the last healthy checkpoint, is kept" if numbers else "no checkpoint was saved before"
        )

    def _write_metrics(self, line: MetricsLine, report: Report) -> None:
        # JSON has no word for what is not finite, such as a perplexity beyond the largest number.
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.values.items()}
        text = json.dumps(values, allow_nan=False) + "\n"
        durable.append(self.run / directory.METRICS, text.encode())
        if self._log is not None:
            self._log.add(values)
        report({**values, "total_steps": line.total_steps})

    def _save(self, event: Checkpoint) -> None:
        """Write a checkpoint; keep the last two and the best."""
        loop, number = self.loop, self.loop.progress.step

        def facts() -> dict[str, Any]:
            return {
                **environment(self.device),
                **self._digests,
                "origin": self.origin,
                "progress": event.progress().to_mapping(),
                "options": self.options.to_mapping(),
            }

        # A step that is safe must not have lost the metrics that led to it.
        metrics = self.run / directory.METRICS
        if metrics.exists():
            durable.sync_file(metrics)
        model, trainer = loop.network.state_dict(), loop.optimizer.tensors()
        if loop.average is not None:
            model, trainer = {**model, **loop.average.weights}, {**trainer, **loop.average.trained()}
        model, trainer = _on_cpu(model), _on_cpu(trainer)
        checkpoint.save(self.run, number, self.config.to_mapping(), model, trainer, facts)
        # A later step that is there was found damaged, or not finite, when this run was resumed.
        newest = [step for step in checkpoint.steps(self.run) if step <= number][:2]
        for text in directory.prune(self.run, {*newest, loop.progress.best_step}):
            self.warn(text)
        figures = ", ".join(f"{name} {value:.3f}" for name, value in (event.figures or {}).items())
        outcome = f"{figures}; the best is step {loop.progress.best_step}" if figures else "not validated"
        self.detail(f"step {number} saved after {loop.progress.wall_s:.1f} s: {outcome}")

    def restore(self, step: checkpoint.Step) -> None:
        """Go on from a verified step.

        Raises:
            ConfigError: other data, or options that contradict the run; CheckpointError: a file does not fit.
        """
        resume.check_agreement(step, self.config, self.options)
        facts, progress = manifest.read_facts(step), read_progress(step)
        self._check_data(facts)
        self.origin = manifest.read_origin(step)
        if progress.batch >= self.loop.feed.num_batches(progress.epoch):
            raise broken(step.path / checkpoint.MANIFEST, f"has no batch {progress.batch} in epoch {progress.epoch}")
        note = resume.apply_new_end(self.run, progress, read_options(step), self.options)
        expected = expected_tensors(self.config, self.options)
        path = step.path / "trainer.safetensors"
        moments = tensor_file.read_tensors(path, expected.trainer)
        for name, tensor in moments.items():
            if name.endswith(".step") and not 0 <= float(tensor) <= progress.step:
                raise broken(path, f"has a step of {name.removesuffix('.step')} that the run has not made")
        weights = tensor_file.read_tensors(step.path / "model.safetensors", expected.network)
        self.loop.network.load_state_dict(weights)
        self.loop.optimizer.restore(moments)
        if self.loop.average is not None:
            self.loop.average.restore(moments)
        self.loop.restore(progress)
        if note is not None:
            self.warn(note)
        if (differences := resume.differences(facts, environment(self.device))) is not None:
            self.warn(f"warning: {step.path}: {differences}")

    def _check_data(self, facts: dict[str, Any]) -> None:
        for name, what in (
            ("data_sha256", "was trained on other sequences; resume with the same FASTA files"),
            ("validation_sha256", "is validated on other sequences; resume with the same {validate}"),
        ):
            if facts[name] != self._digests[name]:
                raise ConfigError(Message(f"{{run}}: {what}", run=self.run, validate=Argument("validate")))


def _on_cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}
