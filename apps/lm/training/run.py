"""Train into a run directory: read the sequences, lock the directory, start the run or resume it, train."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from protperf.errors import ConfigError
from protperf.lm.data.store import Paths, TokenStore
from protperf.lm.model.config import ModelConfig
from protperf.lm.shared_options import RejectOptions
from protperf.lm.storage import checkpoint, directory, durable
from protperf.lm.storage.expected import check_tensors
from protperf.lm.training import resume as resuming
from protperf.lm.training import tensorboard
from protperf.lm.training.clock import Clock
from protperf.lm.training.fine_tune import take_weights
from protperf.lm.training.input import Input
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.origin import IN_PYTHON
from protperf.lm.training.state import expected_tensors
from protperf.lm.training.trainer import Trainer
from protperf.lm.training.trigram import trigram_perplexity
from protperf.lm.training.verdict import verdict
from protperf.lm.watch import Watch
from protperf.message import Argument, Message

_OPTIONS = {
    **{name: Argument(name) for name in ("steps", "epochs", "time", "patience")},
    **{name: Argument(name, True) for name in ("resume", "force")},
}
"""Arguments that messages name."""

Choose = Callable[[TokenStore, TrainOptions, Callable[[str], None]], tuple[ModelConfig, TrainOptions]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        figures: of the last validation; empty if there was none.
        signal: the number of the signal that stopped it, if one did.
        rejected: records that the residue policy left out.
        remark: what should be known of the result, such as that nothing was learnt.
        learnt: how much better the model is than residue frequencies, in words.
        best_step: whose figures these are, if not those of the last step.
    """

    run: Path
    steps: int
    figures: dict[str, float]
    signal: int | None
    rejected: int = 0
    remark: str | None = None
    learnt: str | None = None
    best_step: int | None = None

    def facts(self) -> list[str]:
        """What came of it, in words."""
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.figures.items())
        best = None if self.best_step is None else f"these are the figures of step {self.best_step}, the best"
        parts = [f"{self.run}: {self.steps} steps", figures, self.learnt, best]
        result = "; ".join(part for part in parts if part)
        warning = None if self.remark is None else Message("warning: {remark}", remark=self.remark)
        return [result] if warning is None else [warning, result]

    def interruption(self) -> list[str]:
        """How to go on, in words, where a signal has stopped the run."""
        text = "stopped and saved; continue with {resume}"
        return [] if self.signal is None else [Message(text, resume=Argument("resume", True))]


def train_run(
    fasta: Paths,
    out: str | os.PathLike[str],
    config: ModelConfig,
    options: TrainOptions,
    *,
    validate: str | os.PathLike[str] | None = None,
    seq_col: str | None = None,
    rejects: RejectOptions | None = None,
    resume: bool = False,
    force: bool = False,
    device: torch.device | str = "cpu",
    clock: Clock | None = None,
    command: str = IN_PYTHON,
    choose: Choose | None = None,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
    warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    detail: Callable[[str], None] = lambda text: None,
    watch: Watch | None = None,
) -> Outcome:
    """Train on sequence files into a run directory.

    A resumed run keeps the options and the configuration that it was started with (`resume.stored_choices`); only its
    end, how often it saves and how often it writes metrics may change.

    Args:
        seq_col: the files, that of `validate` too, are tables with their sequences in this column.
        rejects: where the records are listed that the residue policy leaves out.
        resume: go on with the run in the directory; start it if it has no checkpoint yet.
        force: replace the run in the directory; with `resume`, only where it has checkpoints and none can be used.
        clock: has run since the work began, if that was before this call.
        command: what started the run, for whoever asks later.
        choose: gives the configuration and options of a new run by what is trained on.
        report: called with each line of metrics; warn: with what deserves attention; detail: with each stage.
        watch: shows what is waited for before the first step.

    Raises:
        ConfigError: the directory holds a run and neither `resume` nor `force` was given; on resume, other data, or an
            option that contradicts the run.
        DataError, FastaError, FileError: from the sequence files; CheckpointError: no step can be used, or a full disk.
        DivergenceError: a loss, a gradient or a weight is not finite; the last healthy step is kept.
    """
    run, clock = Path(out), clock or Clock()
    if options.logger == "tensorboard":
        tensorboard.require()
    _check_directory(run, resume, force)
    if validate is not None:
        options = dataclasses.replace(options, validate=None)
    files = Input.of(fasta, validate, seq_col, rejects)
    parts, rejected = files.read(run, options, warn)
    detail(parts.extent())
    if choose is not None:
        config, options = choose(parts.train, options, warn)
    with directory.locked(run, warn):
        # Another process may have trained here while the sequences were read.
        _check_directory(run, resume, force)
        for text in directory.recover(run):
            warn(text)
        start = _step_to_resume(run, warn, force) if resume else None
        if start is not None:
            # Before the network takes its memory: the run has this configuration, and its tensors are those of it.
            resuming.check_agreement(start, config, options)
            check_tensors(start, expected_tensors(config, options))
        trainer = Trainer(
            run, config, options, parts.train, parts.held, warn, detail, device=device, clock=clock, watch=watch
        )
        if start is None:
            # Before anything is removed: the weights may be those of the run that is replaced.
            init = None if options.init is None else take_weights(trainer, options.init)
            directory.clear(run)
            durable.replace_file(run / directory.CONFIG, _toml(config, options).encode())
            trainer.origin = files.origin(command, parts, init, warn)
        else:
            trainer.restore(start)
            _forget_later_metrics(run, start.number)
            if trainer.loop.finished():
                text = "note: {run}: is finished; a larger {steps}, {epochs}, {time} or {patience} trains on"
                warn(Message(text, run=run, **_OPTIONS))
        figures = trainer.fit(report)
    outcome = _outcome(trainer, figures, rejected)
    if not figures or trainer.stop_signal is not None:
        return outcome
    # An n-gram reads from the left, as the model does if `val_loss` is that of the next residue.
    trigrams = trigram_perplexity(parts.train, parts.held) if config.objective != "masked" else None
    judged = verdict(run, outcome.steps, figures, trigrams)
    return dataclasses.replace(outcome, remark=judged.warning, learnt=judged.learnt)


def _outcome(trainer: Trainer, figures: dict[str, float], rejected: int) -> Outcome:
    progress, run = trainer.loop.progress, trainer.run
    is_earlier = progress.stale > 0 and figures.get("val_loss") == progress.best_loss
    best_step = progress.best_step if is_earlier else None
    return Outcome(run, progress.step, figures, trainer.stop_signal, rejected, best_step=best_step)


def _check_directory(run: Path, resume: bool, force: bool) -> None:
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run}: is a file; name a directory to make")
    if force:
        return
    if directory.holds_run(run):
        if not resume:
            text = "{run}: holds a run already; continue it with {resume} or replace it with {force}"
            raise ConfigError(Message(text, run=run, **_OPTIONS))
    elif (entry := directory.foreign_entry(run)) is not None:
        text = "{run}: holds {entry} and no run; name a directory of its own, or give {force}"
        raise ConfigError(Message(text, run=run, entry=entry.name, **_OPTIONS))


def _step_to_resume(run: Path, warn: Callable[[str], None], force: bool) -> checkpoint.Step | None:
    """The step to go on from; None where the run has not saved one yet, or with `force` none that can be used."""
    if not checkpoint.steps(run):
        warn(f"note: {run}: has no checkpoint yet; the run starts from the beginning")
        return None
    step = resuming.newest_step(run, warn)
    if step is None and not force:
        raise resuming.no_usable_step(run)
    if step is None:
        warn(f"warning: {run}: no checkpoint can be used; the run starts from the beginning")
    return step


def _forget_later_metrics(run: Path, step: int) -> None:
    """Drop metrics of steps after the one resumed from, which will be written again, and what an interruption tore."""
    path = run / directory.METRICS
    if not path.exists():
        return
    kept = []
    with durable.named(path):
        lines = path.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    durable.replace_file(path, b"".join(kept))


def _toml(config: ModelConfig, options: TrainOptions) -> str:
    lines = []
    for title, values in (("model", config.to_mapping()), ("training", options.to_mapping())):
        lines.append(f"[{title}]")
        for name, value in values.items():
            if value is None or (isinstance(value, float) and not math.isfinite(value)):
                continue
            lines.append(f"{name} = {json.dumps(value)}" if isinstance(value, str) else f"{name} = {value}")
        lines.append("")
    return "\n".join(lines)
