"""The network in torch as an `Engine`: the reference for the native one, and the engine of every other device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from protperf.errors import ConfigError
from protperf.lm.engine import Borders, Tokens
from protperf.lm.model.network import ChunkState, Network
from protperf.lm.model.torch_process import check_fork, one_torch_thread


class TorchEngine:
    """A network in evaluation mode; as `protperf.lm.engine.Engine`."""

    name = "torch"

    def __init__(self, network: Network) -> None:
        self.network, self.config = network, network.config
        weight = network.embedding.weight
        self.dtype, self.device = str(weight.dtype).removeprefix("torch."), str(weight.device)

    def arithmetic(self, deterministic: bool) -> dict[str, object]:
        threads = 1 if deterministic else torch.get_num_threads()
        return {"engine": self.name, "torch": str(torch.__version__), "threads": threads}

    @contextmanager
    def computing(self, deterministic: bool) -> Iterator[None]:
        check_fork()
        if not deterministic:
            yield
            return
        with one_torch_thread():
            yield

    def log_probs(
        self, tokens: Tokens, borders: Borders, mode: int, rows: NDArray[np.int64] | None = None
    ) -> NDArray[np.floating]:
        with torch.inference_mode():
            hidden = self.network.hidden(self.tensor(tokens), self.tensor(borders), mode)
            return self.picked(hidden, rows)

    def hidden(self, tokens: Tokens, borders: Borders, mode: int, layer: int = -1) -> NDArray[np.floating]:
        self.check_layer(layer)
        with torch.inference_mode():
            found = self.network.hidden(self.tensor(tokens), self.tensor(borders), mode, layer)
        return np.asarray(found.cpu().numpy())

    def empty_state(self, num_sequences: int = 1) -> TorchState:
        return TorchState(self, ChunkState(torch.zeros(num_sequences, dtype=torch.int64)))

    def check_layer(self, layer: int) -> None:
        """Refuse a layer that the network does not have."""
        if not -1 <= layer <= self.config.num_layers:
            raise ConfigError(f"layer is {layer}; it must be from -1 to {self.config.num_layers}")

    def picked(self, hidden: torch.Tensor, rows: NDArray[np.int64] | None) -> NDArray[np.floating]:
        """Log-probabilities of some rows of normalized hidden states."""
        wanted = hidden if rows is None else hidden[self.tensor(rows)]
        return np.asarray(functional.log_softmax(self.network.logits(wanted), -1).cpu().numpy())

    def tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        """An array on the device of the network."""
        # torch warns of memory that may not be written to.
        writable = array if array.flags.writeable else array.copy()
        return torch.from_numpy(writable).to(self.device)


class TorchState:
    """The state of a torch network; as `protperf.lm.engine.CausalState`."""

    def __init__(self, engine: TorchEngine, inner: ChunkState) -> None:
        self._engine, self._inner = engine, inner

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.asarray(self._inner.positions.cpu())

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> TorchState:
        return TorchState(self._engine, self._inner.select([int(index) for index in indices]))

    def advance(self, tokens: Tokens, borders: Borders, rows: NDArray[np.int64] | None = None) -> NDArray[np.floating]:
        engine = self._engine
        with torch.inference_mode():
            hidden = engine.network.continued(engine.tensor(tokens), engine.tensor(borders), self._inner)
            return engine.picked(hidden, rows)

    def advance_hidden(self, tokens: Tokens, borders: Borders, layer: int = -1) -> NDArray[np.floating]:
        engine = self._engine
        engine.check_layer(layer)
        with torch.inference_mode():
            hidden = engine.network.continued(engine.tensor(tokens), engine.tensor(borders), self._inner, layer)
        return np.asarray(hidden.cpu().numpy())
