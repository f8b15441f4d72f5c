"""Continuing a run: what may be asked for again, what may change, and what would make another run of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.model.config import ModelConfig
from protperf.lm.storage import checkpoint
from protperf.lm.storage.manifest import read_config
from protperf.lm.storage.plain_file import short
from protperf.lm.training.options import ENDS, TrainOptions
from protperf.lm.training.state import Progress, read_options

RHYTHM = ("checkpoint_every", "log_every")
"""Options that change what is written, not what is computed."""
_OF_THE_MODEL = ("attention", "objective", "num_features", "dropout", "seed")


def begun(given: Mapping[str, Any]) -> tuple[ModelConfig, TrainOptions]:
    """Configuration and options of a new run, defaults where nothing was named.

    Args:
        given: by name, fields of `ModelConfig` and `TrainOptions` that were named, and `size`.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    known = ["size", *_OF_THE_MODEL, *names]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; known are {', '.join(known)}")
    chosen = {name: given[name] for name in _OF_THE_MODEL if name in given}
    options = TrainOptions(**{name: value for name, value in given.items() if name in names})
    return ModelConfig.from_size(given.get("size", "nano"), **{"seed": options.seed, **chosen}), options


def continued(step: checkpoint.Step, given: Mapping[str, Any]) -> tuple[ModelConfig, TrainOptions]:
    """Configuration and options of a stored run, with what was named anew on top; `agree` judges the result.

    Args:
        given: by name, the fields of `ModelConfig` and `TrainOptions` that were named, and `size`.

    Raises:
        ConfigError: a value out of range; CheckpointError: a damaged file, named.
    """
    config, options = read_config(step), read_options(step)
    chosen = {name: given[name] for name in _OF_THE_MODEL if name in given}
    if "size" in given:
        kept = {name: getattr(config, name) for name in _OF_THE_MODEL}
        config = ModelConfig.from_size(given["size"], **{**kept, **chosen})
    else:
        config = dataclasses.replace(config, **chosen)
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    changes = {name: value for name, value in given.items() if name in names}
    if any(name in given for name in ENDS):
        changes = {**dict.fromkeys(ENDS), **changes}
    return config, dataclasses.replace(options, **changes)


def agree(step: checkpoint.Step, config: ModelConfig, options: TrainOptions) -> None:
    """Refuse to continue a run as another one.

    Raises:
        ConfigError: an option contradicts the run; it is named with both values.
    """
    pairs = [(read_config(step).to_mapping(), config.to_mapping())]
    pairs += [(read_options(step).to_mapping(), options.to_mapping())]
    for stored, asked in pairs:
        for name, value in asked.items():
            if name not in ENDS and name not in RHYTHM and value != stored[name]:
                raise ConfigError(_contradiction(name, stored[name], value))


def _contradiction(name: str, stored: Any, value: Any) -> str:
    if name == "validate" and None in (stored, value):
        held = "a file of its own" if stored is None else f"a fraction of {stored} of the sequences"
        return f"--validate contradicts the run, which validates on {held}; give the same again"
    return (
        f"{_flag(name)} contradicts the run, whose {name} is {short(stored)} and not {short(value)}; "
        "leave it out to continue, or begin another run with another -o"
    )


def new_end(run: Path, progress: Progress, before: TrainOptions, options: TrainOptions) -> str | None:
    """Set how far a continued run goes; returns a note if that has changed.

    Raises:
        ConfigError: the run is past the end that is asked for.
    """
    old, new = _end(before), _end(options)
    if old == new:
        return None
    past = {"steps": progress.step, "epochs": progress.epoch, "time_s": progress.wall_s}[new[0]]
    if new[1] < past or (new[0] != "epochs" and new[1] == past):
        raise ConfigError(
            f"{_flag(new[0])} {new[1]} is behind the run, which is at {past}; it counts from the run's beginning"
        )
    progress.total_steps = options.steps
    return (
        f"note: {run}: ends at {_flag(new[0])} {new[1]} instead of {_flag(old[0])} {old[1]}; "
        "the learning rate follows the new end"
    )


def differences(facts: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Why a continued run may differ in its last bits: other threads, instructions or versions."""
    told = [f"{name} {facts[name]} then, {here[name]} now" for name in here if facts[name] != here[name]]
    return f"{'; '.join(told)}: the continued run may differ in the last bits" if told else None


def _end(options: TrainOptions) -> tuple[str, float]:
    return next((name, getattr(options, name)) for name in ENDS if getattr(options, name) is not None)


def _flag(name: str) -> str:
    fields = {field.name for field in dataclasses.fields(TrainOptions)}
    if name == "time_s":
        return "--time"
    return f"--{name.replace('_', '-')}" if name in fields or name in _OF_THE_MODEL else "--size"
