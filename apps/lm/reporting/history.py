"""The course of a training, as the metrics of its run directory tell it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError, MissingFileError
from protperf.lm.storage import durable
from protperf.lm.storage.directory import METRICS

MAX_POINTS = 300
"""Points of a curve that is drawn; those of a longer one are means of neighbours."""
PERPLEXITIES = {"val_perplexity": "left to right", "val_perplexity_masked": "masked"}
"""Figures of a validation, and what they are called."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure by step; a step may be a mean of steps."""

    steps: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.steps)

    def thinned(self, most: int = MAX_POINTS) -> Curve:
        """At most so many points, each the mean of neighbours."""
        size = -(-len(self.steps) // most) or 1
        starts = range(0, len(self.steps), size)
        return Curve(*([_mean(part[i : i + size]) for i in starts] for part in (self.steps, self.values)))

    def smoothed(self) -> Curve:
        """The moving mean of a twentieth of the points."""
        reach = len(self.steps) // 40
        around = (self.values[max(0, i - reach) : i + reach + 1] for i in range(len(self.values)))
        return Curve(self.steps, [_mean(part) for part in around])


@dataclass(frozen=True, slots=True)
class History:
    """The lines of a run's metrics, in their order: those of training and those of validation."""

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]

    def curve(self, name: str) -> Curve:
        """A figure by step, without the lines that have no finite one."""
        lines = [line for line in [*self.training, *self.validation] if _is_finite(line.get(name))]
        return Curve([float(line["step"]) for line in lines], [float(line[name]) for line in lines])

    @property
    def best(self) -> dict[str, Any] | None:
        """The validation with the least loss."""
        judged = [line for line in self.validation if _is_finite(line["val_loss"])]
        return min(judged, key=lambda line: line["val_loss"], default=None)


def read_history(path: Path) -> History:
    """The metrics of a run directory, or of the run whose step a directory is; a line that is torn is left out.

    Raises:
        MissingFileError: there is no such directory; ConfigError: it is not that of a training, or has no metrics yet;
        FileError: they cannot be read.
    """
    if not path.is_dir():
        raise MissingFileError(None, "no such run directory; check the path", str(path))
    run = path if (path / METRICS).exists() else path.resolve().parent
    if not (run / METRICS).exists():
        raise ConfigError(f"{path}: has no {METRICS}, from which curves are drawn; name the directory of a training")
    with durable.named(run / METRICS):
        lines = list(_lines((run / METRICS).read_bytes()))
    history = History([line for line in lines if "loss" in line], [line for line in lines if "val_loss" in line])
    if not (history.training or history.validation):
        raise ConfigError(f"{run / METRICS}: has no line yet; wait for the first steps of the training")
    return history


def _lines(data: bytes) -> Iterator[dict[str, Any]]:
    for text in data.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and type(line.get("step")) is int:
            yield line


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
