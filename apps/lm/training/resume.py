"""Resuming a run: from which step, what may be given again, what may change, and what would make it another run."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from protperf.errors import CheckpointError, ConfigError
from protperf.lm.model.config import MODEL_CHOICES, ModelConfig
from protperf.lm.options import options_of
from protperf.lm.storage import checkpoint, directory, tensor_file
from protperf.lm.storage.manifest import read_config
from protperf.lm.storage.plain_file import broken, read_bytes, short
from protperf.lm.training.fine_tune import inherited_config
from protperf.lm.training.options import DURATION_OPTIONS, TrainOptions
from protperf.lm.training.progress import Progress
from protperf.lm.training.state import read_options
from protperf.message import Argument, Message

LOGGING_OPTIONS = ("checkpoint_every", "log_every", "logger", "patience")
"""Options that change what is written and where a run ends, not what is computed."""
_MODEL_OPTIONS = (*MODEL_CHOICES, "seed")

FORCE = Argument("force", True)

Choices = tuple[ModelConfig, TrainOptions]


def newest_step(run: Path, warn: Callable[[str], None]) -> checkpoint.Step | None:
    """The newest step to go on from. Damaged ones, and those with numbers that are not finite, are passed over."""
    for number in checkpoint.steps(run):
        try:
            step = checkpoint.verify(run / f"step-{number}")
            for name in ("model.safetensors", "trainer.safetensors"):
                if (tensor := tensor_file.first_not_finite(step.path / name)) is not None:
                    raise broken(step.path / name, f"tensor {tensor} holds a number that is not finite")
            return step
        except CheckpointError as error:
            warn(f"warning: {error.filename}: {error.strerror}; trying an older step")
    return None


def new_choices(given: Mapping[str, Any]) -> Choices:
    """Configuration and options of a new run: those given, and defaults.

    Args:
        given: by name, fields of `ModelConfig` and `TrainOptions`, and `size`.

    Raises:
        ConfigError: an unknown name, a value out of range, or a network that is not that of `init`; MissingFileError,
        CheckpointError: `init` cannot be read.
    """
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    known = ["size", *_MODEL_OPTIONS, *names]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; known are {', '.join(known)}")
    chosen = {name: given[name] for name in _MODEL_OPTIONS if name in given}
    options = TrainOptions(**{name: value for name, value in given.items() if name in names})
    if options.init is not None:
        return inherited_config(options.init, given), options
    return ModelConfig.from_size(given.get("size", "nano"), **{"seed": options.seed, **chosen}), options


def stored_choices(run: str | os.PathLike[str], given: Mapping[str, Any], force: bool = False) -> Choices | None:
    """Configuration and options to resume a run with: those of the run, except for what is given again.

    Without a checkpoint the run starts anew, with the options in `config.toml`, and what is given takes the place of
    any of them; None if it had not got that far.

    Args:
        given: by name, fields of `ModelConfig` and `TrainOptions`, and `size`.
        force: start anew also where there are checkpoints, but none that can be used.

    Raises:
        ConfigError: a value is out of range, or contradicts the run; CheckpointError: no checkpoint can be used.
    """
    run = Path(run)
    # Warnings about damaged steps are given when the run is resumed.
    step = newest_step(run, lambda text: None) if run.is_dir() else None
    if step is not None:
        choices = _changed(read_config(step), read_options(step), given)
        check_agreement(step, *choices)
        return choices
    if run.is_dir() and checkpoint.steps(run) and not force:
        raise no_usable_step(run)
    started = _started_with(run)
    return None if started is None else _changed(*started, given)


def no_usable_step(run: Path) -> CheckpointError:
    """The error for a run whose every step is damaged or not finite."""
    return CheckpointError(
        None,
        Message("has no checkpoint to resume from that can be used; start again with {force}", force=FORCE),
        str(run),
    )


def _started_with(run: Path) -> Choices | None:
    """What `config.toml` says of a run that was killed before its first checkpoint."""
    path = run / directory.CONFIG
    try:
        table = tomllib.loads(read_bytes(path).decode())
        options = {field.name: None for field in dataclasses.fields(TrainOptions) if field.default is None}
        training = {**options, "validate": None, **table["training"]}
        return ModelConfig.from_mapping(table["model"]), TrainOptions.from_mapping(training)
    except (CheckpointError, ConfigError, ValueError, KeyError, TypeError, RecursionError):
        # Missing, or no file of ours: `directory.clear` refuses to replace the latter.
        return None


def _changed(config: ModelConfig, options: TrainOptions, given: Mapping[str, Any]) -> Choices:
    chosen = {name: given[name] for name in _MODEL_OPTIONS if name in given}
    if options.init is not None:
        # The network keeps the seed of the checkpoint that it was read from; what is given is that of the training.
        chosen.pop("seed", None)
    if "size" in given:
        kept = {name: getattr(config, name) for name in _MODEL_OPTIONS}
        config = ModelConfig.from_size(given["size"], **{**kept, **chosen})
    else:
        config = dataclasses.replace(config, **chosen)
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    changes = {name: value for name, value in given.items() if name in names}
    if any(name in given for name in DURATION_OPTIONS):
        changes = {**dict.fromkeys(DURATION_OPTIONS), **changes}
    return config, dataclasses.replace(options, **changes)


def check_agreement(step: checkpoint.Step, config: ModelConfig, options: TrainOptions) -> None:
    """Refuse to resume a run as another one.

    Raises:
        ConfigError: an option contradicts the run; the message has its name and both values.
    """
    pairs = [(read_config(step).to_mapping(), config.to_mapping())]
    pairs += [(read_options(step).to_mapping(), options.to_mapping())]
    for stored, asked in pairs:
        for name, value in asked.items():
            if name not in (*DURATION_OPTIONS, *LOGGING_OPTIONS) and value != stored[name]:
                raise ConfigError(_contradiction(name, stored[name], value))


def _contradiction(name: str, stored: Any, value: Any) -> Message:
    option = _argument(name)
    if name == "validate" and None in (stored, value):
        held = "a file of its own" if stored is None else f"a fraction of {stored} of the sequences"
        text = "{option} contradicts the run, which validates on {held}; give the same again"
        return Message(text, option=option, held=held)
    text = "{option} contradicts the run, whose {name} is {stored} and not {value}; leave it out to continue, "
    text += "or start another run with another {out}"
    values = {"stored": short(stored), "value": short(value)}
    return Message(text, option=option, name=name, out=Argument("out"), **values)


def apply_new_end(run: Path, progress: Progress, before: TrainOptions, options: TrainOptions) -> str | None:
    """Set how far a resumed run goes; returns a note if that has changed.

    Raises:
        ConfigError: the run is past the end that is asked for.
    """
    old, new = _end(before), _end(options)
    if old == new:
        return None
    past = {"steps": progress.step, "epochs": progress.epoch, "time_s": progress.wall_s}[new[0]]
    if new[1] < past or (new[0] != "epochs" and new[1] == past):
        text = "{end} is behind the run, which is at {past}; it counts from the start of the run"
        raise ConfigError(Message(text, end=_argument(*new), past=past))
    progress.total_steps = options.steps
    text = "note: {run}: ends at {new} instead of {old}; the learning rate follows the new end"
    return Message(text, run=run, new=_argument(*new), old=_argument(*old))


def differences(facts: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Why a resumed run may differ in its last bits: another device, other threads, instructions or versions."""
    found = [f"{name} {facts[name]} then, {now[name]} now" for name in now if facts[name] != now[name]]
    return f"{'; '.join(found)}: the continued run may differ in the last bits" if found else None


def _end(options: TrainOptions) -> tuple[str, float]:
    return next((name, getattr(options, name)) for name in DURATION_OPTIONS if getattr(options, name) is not None)


def _argument(name: str, value: object = None) -> Argument:
    """The argument that sets an option of a run, which is its size for those that only that decides."""
    if name in options_of(TrainOptions):
        return Argument(options_of(TrainOptions)[name].argument, value)
    return Argument(name if name in _MODEL_OPTIONS else "size", value)
