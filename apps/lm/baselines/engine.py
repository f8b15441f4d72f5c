"""What baselines have in common as `protperf.lm.engine.Engine`: they are tables, read by NumPy on a CPU."""

from __future__ import annotations

import contextlib
from typing import NoReturn

from protperf.errors import ConfigError
from protperf.lm.engine import Borders, Tokens
from protperf.lm.model.config import ModelConfig


class BaselineEngine:
    """A table in the place of a network: the same bits for any batch and any number of threads."""

    name, device = "baseline", "cpu"

    def __init__(self, kind: str, objective: str, dtype: str) -> None:
        self.kind, self.dtype = kind, dtype
        # There are no layers; what sizes memory by them gets the least.
        self.config = ModelConfig(
            num_layers=1, model_dim=1, num_heads=1, head_dim=2, ffn_dim=1, num_features=1, objective=objective
        )

    def arithmetic(self, deterministic: bool) -> dict[str, object]:
        return {"engine": self.name}

    def computing(self, deterministic: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def hidden(self, tokens: Tokens, borders: Borders, mode: int, layer: int = -1) -> NoReturn:
        raise ConfigError(f"a baseline ({self.kind}) has no hidden states to embed; name a trained network")
