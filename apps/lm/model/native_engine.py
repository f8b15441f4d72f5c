"""The network in Rust as an `Engine`: what reads models on a CPU, and on a GPU as device `wgpu`, without torch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protperf.lm.engine import CAUSAL, Borders, Places, Targets, Tokens
from protperf.lm.model.config import ModelConfig
from protperf.network import Network, NetworkState, Pool


class NativeEngine:
    """A network of a verified step; as `protperf.lm.engine.PoolingEngine`.

    Every bit of a row depends on its own sequence alone and on no number of threads, so that nothing has to be done for
    results that are reproducible, or in a forked process. There are two exceptions: where no sequence of a state reads
    on by more than one token, a CPU forms sums in another order than in longer pieces; and what lies on a GPU is of no
    use to a forked process: there it raises a DeviceError.
    """

    name = "native"

    def __init__(self, step: Path, config: ModelConfig, dtype: str = "float32", device: str = "cpu") -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.network = Network(step, config.model_dim, config.num_layers, dtype, device)

    def arithmetic(self, deterministic: bool) -> dict[str, object]:
        return {"engine": self.name}

    def computing(self, deterministic: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def log_probs(
        self, tokens: Tokens, borders: Borders, mode: int, rows: Places = None, targets: Targets = None
    ) -> NDArray[np.floating]:
        return self.network.log_probs(tokens, borders, mode == CAUSAL, rows, targets)

    def hidden(self, tokens: Tokens, borders: Borders, mode: int, layer: int = -1) -> NDArray[np.floating]:
        return self.network.hidden(tokens, borders, mode == CAUSAL, layer)

    def pooled(
        self, tokens: Tokens, borders: Borders, mode: int, pools: Sequence[Pool], layer: int = -1
    ) -> NDArray[np.float64]:
        return self.network.pooled(tokens, borders, mode == CAUSAL, pools, layer)

    def empty_state(self, num_sequences: int = 1) -> NativeState:
        return NativeState(self.network.empty_state(num_sequences))


class NativeState:
    """The state of a native network; as `protperf.lm.engine.PoolingState`."""

    def __init__(self, inner: NetworkState) -> None:
        self._inner = inner

    @property
    def positions(self) -> NDArray[np.int64]:
        return self._inner.positions

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> NativeState:
        return NativeState(self._inner.select(indices))

    def advance(
        self, tokens: Tokens, borders: Borders, rows: Places = None, targets: Targets = None
    ) -> NDArray[np.floating]:
        return self._inner.advance(tokens, borders, rows, targets)

    def advance_hidden(self, tokens: Tokens, borders: Borders, layer: int = -1) -> NDArray[np.floating]:
        return self._inner.advance_hidden(tokens, borders, layer)

    def advance_pooled(
        self, tokens: Tokens, borders: Borders, pools: Sequence[Pool], layer: int = -1
    ) -> NDArray[np.float64]:
        return self._inner.advance_pooled(tokens, borders, pools, layer)
