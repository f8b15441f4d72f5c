"""The network in torch as an `Engine`: the reference for the native one, and the engine of every other device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from protperf.lm.engine import Borders, Places, Targets, Tokens
from protperf.lm.model.network import ChunkState, Network
from protperf.lm.model.torch_computing import TorchComputing


class TorchEngine(TorchComputing):
    """A network in evaluation mode; as `protperf.lm.engine.Engine`."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.config, network.embedding.weight)
        self.network = network

    def log_probs(
        self, tokens: Tokens, borders: Borders, mode: int, rows: Places = None, targets: Targets = None
    ) -> NDArray[np.floating]:
        with torch.inference_mode():
            hidden = self.network.hidden(self.tensor(tokens), self.tensor(borders), mode)
            return self.picked(hidden, rows, targets)

    def hidden(self, tokens: Tokens, borders: Borders, mode: int, layer: int = -1) -> NDArray[np.floating]:
        self.check_layer(layer)
        with torch.inference_mode():
            found = self.network.hidden(self.tensor(tokens), self.tensor(borders), mode, layer)
        return np.asarray(found.cpu().numpy())

    def empty_state(self, num_sequences: int = 1) -> TorchState:
        return TorchState(self, ChunkState(torch.zeros(num_sequences, dtype=torch.int64)))

    def picked(self, hidden: torch.Tensor, rows: Places, targets: Targets) -> NDArray[np.floating]:
        """Log-probabilities of some rows of normalized hidden states, or of their targets alone."""
        wanted = hidden if rows is None else hidden[self.tensor(rows)]
        found = functional.log_softmax(self.network.logits(wanted), -1)
        if targets is not None:
            found = found.gather(1, self.tensor(targets).long()[:, None])[:, 0]
        return np.asarray(found.cpu().numpy())


class TorchState:
    """The state of a torch network; as `protperf.lm.engine.CausalState`."""

    def __init__(self, engine: TorchEngine, inner: ChunkState) -> None:
        self._engine, self._inner = engine, inner

    @property
    def positions(self) -> NDArray[np.int64]:
        return np.asarray(self._inner.positions.cpu())

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> TorchState:
        return TorchState(self._engine, self._inner.select([int(index) for index in indices]))

    def advance(
        self, tokens: Tokens, borders: Borders, rows: Places = None, targets: Targets = None
    ) -> NDArray[np.floating]:
        engine = self._engine
        with torch.inference_mode():
            hidden = engine.network.continued(engine.tensor(tokens), engine.tensor(borders), self._inner)
            return engine.picked(hidden, rows, targets)

    def advance_hidden(self, tokens: Tokens, borders: Borders, layer: int = -1) -> NDArray[np.floating]:
        engine = self._engine
        engine.check_layer(layer)
        with torch.inference_mode():
            hidden = engine.network.continued(engine.tensor(tokens), engine.tensor(borders), self._inner, layer)
        return np.asarray(hidden.cpu().numpy())
