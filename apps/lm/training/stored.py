"""What the tables of a verified step say, checked value by value; a fault is a `CheckpointError` that names the file.

A manifest may have been signed anew by whoever made it, so nothing of it is believed for its checksum alone. Torch is
not needed here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.model.config import ModelConfig
from protperf.lm.training import checkpoint
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.plain_file import broken, read_table, short

_TEXT, _DIGEST = re.compile(r"[!-~]{1,100}\Z"), re.compile(r"[0-9a-f]{64}\Z")
_FACTS = {"version": _TEXT, "torch": _TEXT, "isa": _TEXT, "data_sha256": _DIGEST, "validation_sha256": _DIGEST}
_MOST = 2**62


@dataclasses.dataclass
class Progress:
    """Where a run stands: all of it is stored in a checkpoint.

    `step` and the place in the data (`epoch`, `batch`) decide what comes next, and `total_steps`, once it is known, the
    learning rate. `tokens` and `wall_s` only go on in the metrics; `best_loss` and `best_step` say which step is kept.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    total_steps: int | None = None
    best_loss: float = math.inf
    best_step: int = -1

    def to_mapping(self) -> dict[str, Any]:
        """The values by name, for JSON, which has no infinity."""
        values = dataclasses.asdict(self)
        return {**values, "best_loss": None if math.isinf(self.best_loss) else self.best_loss}

    @classmethod
    def from_mapping(cls, values: Any) -> Progress:
        """Progress from a table of a file.

        Raises:
            ConfigError: a key that is unknown or missing, or a value that no run can have.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or set(values) != set(known):
            raise ConfigError(f"progress must have {', '.join(known)} and nothing else")
        for name in ("step", "epoch", "batch", "tokens"):
            _check(name, type(values[name]) is int and 0 <= values[name] < _MOST, values[name])
        total, best, step = values["total_steps"], values["best_loss"], values["best_step"]
        _check("total_steps", total is None or (type(total) is int and 1 <= total < _MOST), total)
        _check("wall_s", _is_number(values["wall_s"]) and values["wall_s"] >= 0, values["wall_s"])
        _check("best_loss", best is None or _is_number(best), best)
        _check("best_step", type(step) is int and -1 <= step <= values["step"], step)
        return cls(**{**values, "best_loss": math.inf if best is None else best})


def read_facts(step: checkpoint.Step) -> dict[str, Any]:
    """Versions, instruction set, threads and digests that a run was made with.

    Raises:
        CheckpointError: one is missing or is no such thing.
    """
    facts: dict[str, Any] = {name: step.manifest.get(name) for name in (*_FACTS, "threads")}
    for name, pattern in _FACTS.items():
        if not isinstance(facts[name], str) or not pattern.match(facts[name]):
            raise broken(step.path / checkpoint.MANIFEST, f"has {short(facts[name])} as {name}")
    if type(facts["threads"]) is not int or not 1 <= facts["threads"] <= 2**20:
        raise broken(step.path / checkpoint.MANIFEST, f"has {short(facts['threads'])} as threads")
    return facts


def read_config(step: checkpoint.Step) -> ModelConfig:
    """The configuration of the network.

    Raises:
        CheckpointError: it is no such table, or a value is out of range.
    """
    path = step.path / "config.json"
    try:
        return ModelConfig.from_mapping(read_table(path))
    except ConfigError as error:
        raise broken(path, _cut(error)) from error


def read_options(step: checkpoint.Step) -> TrainOptions:
    """The options of the run.

    Raises:
        CheckpointError: as `read_config`.
    """
    path = step.path / checkpoint.MANIFEST
    try:
        return TrainOptions.from_mapping(step.manifest.get("options"))
    except ConfigError as error:
        raise broken(path, _cut(error)) from error


def read_progress(step: checkpoint.Step) -> Progress:
    """Where the run stood.

    Raises:
        CheckpointError: as `read_config`, or it is of another step.
    """
    path = step.path / checkpoint.MANIFEST
    try:
        progress = Progress.from_mapping(step.manifest.get("progress"))
    except ConfigError as error:
        raise broken(path, _cut(error)) from error
    if progress.step != step.number:
        raise broken(path, f"has the progress of step {progress.step}")
    return progress


def _cut(error: ConfigError) -> str:
    return str(error)[:200].encode("ascii", "backslashreplace").decode()


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _MOST)


def _check(name: str, good: bool, value: Any) -> None:
    if not good:
        raise ConfigError(f"progress has {short(value)} as {name}")
