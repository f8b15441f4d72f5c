"""What a training run is asked to do: checked before anything is read or written."""

from __future__ import annotations

import dataclasses
from typing import Any

from protperf.errors import ConfigError

DURATION_OPTIONS = ("steps", "epochs", "time_s")
"""Options of which exactly one says how long to train."""
POLICIES = ("map", "strict", "skip")


@dataclasses.dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of training; lengths in tokens, durations in seconds.

    Exactly one of `steps`, `epochs` and `time_s` ends the run. `validate` is the fraction of the sequences that is held
    out; None says that a file is given instead. `residues` is the policy for odd residues. `redraw_interval` counts
    optimizer steps; 0 never redraws.
    """

    steps: int | None = None
    epochs: float | None = None
    time_s: float | None = None
    batch_tokens: int = 4096
    accumulate: int = 1
    crop: int = 1024
    lr: float = 1e-3
    warmup: int = 50
    clip: float = 1.0
    weight_decay: float = 0.1
    validate: float | None = 0.02
    residues: str = "map"
    redraw_interval: int = 0
    checkpoint_every: int = 0
    log_every: int = 10
    seed: int = 42

    def __post_init__(self) -> None:
        ends = [name for name in DURATION_OPTIONS if getattr(self, name) is not None]
        if len(ends) != 1:
            given = "none of them" if not ends else " and ".join(ends)
            raise ConfigError(f"give exactly one of --steps, --epochs and --time; given: {given}")
        for name in ("steps", "batch_tokens", "log_every"):
            self._check(name, 1, 2**40, whole=True)
        self._check("accumulate", 1, 2**16, whole=True)
        self._check("crop", 16, 2**31, whole=True)
        for name in ("warmup", "redraw_interval", "checkpoint_every"):
            self._check(name, 0, 2**40, whole=True)
        self._check("seed", 0, 2**63 - 1, whole=True)
        if self.residues not in POLICIES:
            raise ConfigError(f"residues is {self.residues!r}; choose one of {', '.join(POLICIES)}")
        for name, least, most in (
            ("epochs", 1e-6, 1e9),
            ("time_s", 1.0, 1e9),
            ("lr", 1e-12, 1e3),
            ("clip", 1e-12, 1e12),
            ("weight_decay", 0.0, 1e3),
            ("validate", 1e-6, 0.9),
        ):
            self._check(name, least, most, whole=False)

    def _check(self, name: str, least: float, most: float, *, whole: bool) -> None:
        value = getattr(self, name)
        if value is None and name in (*DURATION_OPTIONS, "validate"):
            return
        good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        # NaN is in no range.
        if not good or not least <= value <= most:
            kind = "an integer" if whole else "a number"
            extent = f"from {least:g} to {most:g}" if most < 2**31 else f"of at least {least:g}"
            raise ConfigError(f"{name} is {value!r}; it must be {kind} {extent}")

    @classmethod
    def from_mapping(cls, values: Any) -> TrainOptions:
        """Options from a table of a file.

        Raises:
            ConfigError: a key that is unknown or missing, or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or set(values) != set(known):
            raise ConfigError(f"options must have {', '.join(known)} and nothing else")
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return dataclasses.asdict(self)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90`, `90s`, `20m`, `1h30m` or `2d`.

    Raises:
        ConfigError: anything else.
    """
    import re

    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text)
    if not text or match is None:
        raise ConfigError(f"{text!r} is no duration; write it like 90s, 20m or 1h30m")
    parts = [float(part) if part else 0.0 for part in match.groups()]
    return sum(part * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=True))
