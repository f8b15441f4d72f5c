"""N-grams as an `Engine`: read left to right, with the last residues as state."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf.errors import ConfigError
from protperf.lm.baselines.engine import BaselineEngine
from protperf.lm.baselines.ngram import BORDER, NUM_SYMBOLS, rolling, symbols_of
from protperf.lm.engine import CAUSAL, Borders, Places, Targets, Tokens, of_targets

Table = NDArray[np.floating]


class NgramEngine(BaselineEngine):
    """Interpolated n-grams; as `protperf.lm.engine.Engine`, in the mode CAUSAL alone.

    Args:
        table: log-probabilities over the vocabulary after each context [NUM_SYMBOLS ** (order - 1), V].
    """

    def __init__(self, kind: str, table: Table, dtype: str) -> None:
        super().__init__(kind, "causal", dtype)
        self._table = table.astype(dtype)
        self._num_before = round(np.log(len(table)) / np.log(NUM_SYMBOLS))

    def log_probs(
        self, tokens: Tokens, borders: Borders, mode: int, rows: Places = None, targets: Targets = None
    ) -> NDArray[Any]:
        if mode != CAUSAL:
            raise ConfigError(f"a baseline ({self.kind}) reads left to right and knows no masks")
        return self.empty_state(len(borders) - 1).advance(tokens, borders, rows, targets)

    def empty_state(self, num_sequences: int = 1) -> NgramState:
        before = np.full((num_sequences, self._num_before), BORDER, np.int64)
        return NgramState(self._table, before, np.zeros(num_sequences, np.int64))


class NgramState:
    """The last symbols of each sequence; as `protperf.lm.engine.CausalState`."""

    def __init__(self, table: Table, before: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        self._table, self._before, self.positions = table, before, positions

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> NgramState:
        places = np.asarray(indices, np.int64)
        return NgramState(self._table, self._before[places], self.positions[places])

    def advance(self, tokens: Tokens, borders: Borders, rows: Places = None, targets: Targets = None) -> NDArray[Any]:
        symbols, count = symbols_of(tokens), self._before.shape[1]
        contexts = np.zeros(len(tokens), np.int64)
        for i, (start, end) in enumerate(itertools.pairwise(borders.tolist())):
            text = np.concatenate([self._before[i], symbols[start:end]])
            contexts[start:end] = rolling(text, count)[count:]
            self._before[i] = text[len(text) - count :]
        self.positions = self.positions + np.diff(borders)
        return of_targets(self._table[contexts if rows is None else contexts[rows]], targets)

    def advance_hidden(self, tokens: Tokens, borders: Borders, layer: int = -1) -> NDArray[Any]:
        raise ConfigError("a baseline has no hidden states to embed; name a trained network")
