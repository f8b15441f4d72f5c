"""Run directories: start one, continue one, load a model from one."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protperf.errors import CheckpointError, ConfigError, DataError
from protperf.lm.data.store import TokenStore, listed, read_store, split
from protperf.lm.model.config import ModelConfig
from protperf.lm.storage import checkpoint, directory, durable
from protperf.lm.storage.expected import check_tensors
from protperf.lm.training import resume as resuming
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.trainer import Trainer

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: its directory, steps, last validation, the signal that stopped it, if one did, and the number of
    records that the residue policy left out.
    """

    run: Path
    steps: int
    figures: dict[str, float]
    signal: int | None
    rejected: int = 0


def train_run(
    fasta: Paths,
    out: str | os.PathLike[str],
    config: ModelConfig,
    options: TrainOptions,
    *,
    validate: str | os.PathLike[str] | None = None,
    seq_col: str | None = None,
    resume: bool = False,
    force: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
    warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    detail: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Train on sequence files into a run directory.

    A resumed run takes the options and the configuration that it was begun with (`stored_choices`); only its end, how
    often it saves and how often it writes metrics may be others.

    Args:
        seq_col: the files, that of `validate` too, are tables with their sequences in this column.
        report: called with each line of metrics; warn: with what deserves an eye; detail: with each step of the work.

    Raises:
        ConfigError: the directory holds a run and neither `resume` nor `force` was given; on resume, other data, or an
            option that contradicts the run.
        DataError, FastaError, FileError: from the sequence files; CheckpointError: nothing to resume, or a full disk.
    """
    run = Path(out)
    _refuse_second_run(run, resume or force)
    if validate is not None:
        options = dataclasses.replace(options, validate=None)
    if options.validate is None and validate is None:
        raise ConfigError("the sequences to validate on are in a file of their own; name it with --validate")
    paths = [fasta] if isinstance(fasta, (str, os.PathLike)) else list(fasta)
    store = read_store(paths, options.residues, warn, seq_col=seq_col, folder=run)
    if validate is None:
        try:
            train, held = split(store, options.validate or 0.0, options.seed)
        except DataError as error:
            raise DataError(f"{listed(paths)}: {error}") from error
    else:
        train, held = store, read_store(validate, options.residues, warn, seq_col=seq_col, folder=run)
    detail(f"{_extent(train)} to train on, {_extent(held)} to validate on")
    rejected = store.rejected + (0 if validate is None else held.rejected)
    with directory.locked(run, warn):
        # Another process may have trained here while the sequences were read.
        _refuse_second_run(run, resume or force)
        for text in directory.recover(run):
            warn(text)
        start = _newest(run, warn) if resume else None
        if start is None and resume:
            raise _nothing_to_resume(run)
        if start is not None:
            # Before the network takes its memory: what is stored is this configuration, and fits it.
            resuming.agree(start, config, options)
            check_tensors(start, config)
        trainer = Trainer(run, config, options, train, held, warn, detail)
        if start is None:
            directory.clear(run)
            durable.replace_file(run / directory.CONFIG, _toml(config, options).encode())
        else:
            trainer.restore(start)
            _forget_later_metrics(run, trainer.progress.step)
            if trainer.finished():
                warn(f"note: {run}: is finished; a larger --steps, --epochs or --time trains on")
        figures = trainer.fit(report)
        return Outcome(run, trainer.progress.step, figures, trainer.stop_signal, rejected)


def _extent(store: TokenStore) -> str:
    return f"{len(store):,} sequence{'s' * (len(store) != 1)} ({store.num_residues:,} residues)"


def _refuse_second_run(run: Path, allowed: bool) -> None:
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run}: is a file; name a directory to make")
    if allowed:
        return
    if directory.holds_run(run):
        raise ConfigError(f"{run}: holds a run already; continue it with --resume or replace it with --force")
    if (entry := directory.foreign_entry(run)) is not None:
        raise ConfigError(f"{run}: holds {entry.name} and no run; name a directory of its own, or give --force")


def _nothing_to_resume(run: Path) -> CheckpointError:
    return CheckpointError(None, "has no checkpoint to resume from; start again with --force", os.fspath(run))


def new_choices(given: Mapping[str, Any]) -> tuple[ModelConfig, TrainOptions]:
    """Configuration and options to begin a run with, as `stored_choices` gives those to continue one."""
    return resuming.begun(given)


def stored_choices(run: str | os.PathLike[str], given: Mapping[str, Any]) -> tuple[ModelConfig, TrainOptions]:
    """Configuration and options to continue a run with: those it was begun with, but for what is named anew.

    Args:
        given: fields of `ModelConfig` and `TrainOptions` by name, and `size`.

    Raises:
        CheckpointError: nothing to resume from; ConfigError: a value out of range, or one that contradicts the run.
    """
    # Damaged steps are told of when the run is continued.
    step = _newest(Path(run), lambda text: None)
    if step is None:
        raise _nothing_to_resume(Path(run))
    config, options = resuming.continued(step, given)
    resuming.agree(step, config, options)
    return config, options


def _newest(run: Path, warn: Callable[[str], None]) -> checkpoint.Step | None:
    """The newest step that verifies; damaged ones are named and passed over."""
    for number in checkpoint.steps(run):
        try:
            return checkpoint.verify(run / f"step-{number}")
        except CheckpointError as error:
            warn(f"warning: {error.filename}: {error.strerror}; trying an older step")
    return None


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
            lines.append(f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}")
        lines.append("")
    return "\n".join(lines)
