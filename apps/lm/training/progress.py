"""Where a run stands, as its checkpoints store it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.storage import manifest
from protperf.lm.storage.checkpoint import MANIFEST, Step
from protperf.lm.storage.plain_file import broken, short

_MAX = 2**62


@dataclasses.dataclass
class Progress:
    """Where a run stands; all of it is stored in a checkpoint.

    `step` and the place in the data (`epoch`, `batch`) decide what comes next, and so does `total_steps`, which the
    learning rate follows, once it is known. `tokens` and `wall_s` are only counted on in the metrics; `best_loss` and
    `best_step` decide which step is kept, `stale`, the validations since the best one, when patience ends.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    tokens: int = 0
    wall_s: float = 0.0
    total_steps: int | None = None
    best_loss: float = math.inf
    best_step: int = -1
    stale: int = 0

    def to_mapping(self) -> dict[str, Any]:
        """The values by name, for JSON, which has no infinity."""
        values = dataclasses.asdict(self)
        return {**values, "best_loss": None if math.isinf(self.best_loss) else self.best_loss}

    @classmethod
    def from_mapping(cls, values: Any) -> Progress:
        """Progress from a table of a file.

        Raises:
            ConfigError: a key is unknown or missing, or a run cannot have this value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if isinstance(values, dict):
            # Earlier versions had no patience.
            values = {"stale": 0, **values}
        if not isinstance(values, dict) or set(values) != set(known):
            raise ConfigError(f"progress must have {', '.join(known)} and nothing else")
        for name in ("step", "epoch", "batch", "tokens", "stale"):
            _check(name, type(values[name]) is int and 0 <= values[name] < _MAX, values[name])
        total, best, step = values["total_steps"], values["best_loss"], values["best_step"]
        _check("total_steps", total is None or (type(total) is int and 1 <= total < _MAX), total)
        _check("wall_s", _is_number(values["wall_s"]) and values["wall_s"] >= 0, values["wall_s"])
        _check("best_loss", best is None or _is_number(best), best)
        _check("best_step", type(step) is int and -1 <= step <= values["step"], step)
        return cls(**{**values, "best_loss": math.inf if best is None else best})


def read_progress(step: Step) -> Progress:
    """Where the run stood.

    Raises:
        CheckpointError: it is missing, a value is out of range, or it is that of another step.
    """
    progress = manifest.read_section(step, "progress", Progress.from_mapping)
    if progress.step != step.number:
        raise broken(step.path / MANIFEST, f"has the progress of step {progress.step}")
    return progress


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _MAX)


def _check(name: str, is_good: bool, value: Any) -> None:
    if not is_good:
        raise ConfigError(f"progress has {short(value)} as {name}")
