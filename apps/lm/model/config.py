"""Sizes and choices of a network: frozen, checked, read from TOML or JSON."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError

SIZES = ("nano", "tiny", "small", "base")
ATTENTIONS = ("relu", "softmax", "exact")
OBJECTIVES = ("masked", "causal", "both")

_MOST = {
    "num_layers": 256,
    "model_dim": 16384,
    "num_heads": 256,
    "head_dim": 1024,
    "ffn_dim": 65536,
    "num_features": 4096,
}


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """What decides the shapes of a network and what it was trained to predict.

    `attention` is `relu` or `softmax` (FAVOR+, linear in length) or `exact` (softmax, quadratic). `objective` is
    `masked`, `causal` or `both`. `seed` draws weights and random directions.
    """

    num_layers: int
    model_dim: int
    num_heads: int
    head_dim: int
    ffn_dim: int
    num_features: int
    attention: str = "relu"
    objective: str = "both"
    dropout: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"{name} is {value!r}; it must be an integer from 1 to {most}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary positions need an even number")
        for name, choices in (("attention", ATTENTIONS), ("objective", OBJECTIVES)):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; it must be from 0 to less than 1")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed is {self.seed!r}; it must be an integer from 0 to 2^63 - 1")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ModelConfig:
        """A configuration from a table of a file.

        Raises:
            ConfigError: a key that is unknown or missing, or a value out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ConfigError(f"unknown key {unknown[0]!r}; known are {', '.join(known)}")
        missing = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING and f.name not in values]
        if missing:
            raise ConfigError(f"key {missing[0]!r} is missing")
        return cls(**values)

    @classmethod
    def from_size(cls, size: str, **choices: Any) -> ModelConfig:
        """The recipe of a size (`nano`, `tiny`, `small`, `base`) or of a TOML file, with choices on top.

        Raises:
            ConfigError: an unknown size, or a value out of range; where the file is at fault, it is named.
            OSError: the file cannot be read.
        """
        if size not in SIZES and not size.endswith(".toml"):
            raise ConfigError(f"size is {size!r}; choose one of {', '.join(SIZES)} or name a .toml file")
        # Choices are judged on a good recipe first: what is wrong after that is the file's fault.
        chosen = cls.from_mapping({**_recipe(size if size in SIZES else "nano"), **choices})
        if size in SIZES:
            return chosen
        data = Path(size).read_bytes()
        try:
            return cls.from_mapping({**tomllib.loads(data.decode("utf-8")), **choices})
        except (ConfigError, ValueError, RecursionError) as error:
            raise ConfigError(f"{size}: {error}") from error

    def to_mapping(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return dataclasses.asdict(self)


def _recipe(size: str) -> dict[str, Any]:
    return tomllib.loads(resources.files("protperf.lm").joinpath("recipes", f"{size}.toml").read_text(encoding="utf-8"))
