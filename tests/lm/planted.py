"""Models that are tables: what they answer is known exactly, and depends on all that was read."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import numpy as np
from conftest import small_config

from protperf.lm.alphabet import BOS, EOS, FIRST_RESIDUE, NUM_STANDARD, VOCAB_SIZE
from protperf.lm.engine import of_targets
from protperf.lm.model.config import ModelConfig

MEMORY = 5
"""Different states of what was read."""


class PlantedState:
    """A number that each token changes; as `CausalState`."""

    def __init__(self, table: np.ndarray, memory: np.ndarray, positions: np.ndarray, sizes: list[int]) -> None:
        self._table, self._memory, self.positions, self._sizes = table, memory, positions, sizes
        sizes.append(len(memory))

    def select(self, indices: Sequence[int]) -> PlantedState:
        places = np.asarray(indices)
        return PlantedState(self._table, self._memory[places], self.positions[places], self._sizes)

    def advance(
        self,
        tokens: np.ndarray,
        borders: np.ndarray,
        rows: np.ndarray | None = None,
        targets: np.ndarray | None = None,
    ) -> np.ndarray:
        found = np.empty((len(tokens), VOCAB_SIZE), np.float32)
        for i, (start, end) in enumerate(itertools.pairwise(borders)):
            for place in range(start, end):
                self._memory[i] = (3 * self._memory[i] + tokens[place]) % MEMORY
                found[place] = self._table[self._memory[i]]
            self.positions[i] += end - start
        return of_targets(found if rows is None else found[rows], targets)


class PlantedEngine:
    """Log-probabilities by the state of what was read: `table` [MEMORY, V]. With one row for all, residues are drawn
    independently of each other.
    """

    name, dtype, device = "planted", "float32", "cpu"

    def __init__(self, table: np.ndarray) -> None:
        self.table = np.broadcast_to(table, (MEMORY, VOCAB_SIZE))
        self.config: ModelConfig = small_config(objective="causal")
        self.sizes: list[int] = []

    def computing(self, deterministic: bool) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def empty_state(self, num_sequences: int = 1) -> PlantedState:
        zeros = np.zeros(num_sequences, np.int64)
        return PlantedState(self.table, zeros, zeros.copy(), self.sizes)


def random_table(seed: int = 0, spread: float = 1.5) -> np.ndarray:
    """Log-probabilities of every token, special ones and X among them."""
    logits = np.random.default_rng(seed).normal(0, spread, (MEMORY, VOCAB_SIZE))
    logits[:, EOS] -= 1.5
    return normalized(logits)


def normalized(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def log_table(chances: dict[int, float]) -> np.ndarray:
    """One row of log-probabilities; tokens that are not named are as good as impossible."""
    row = np.full(VOCAB_SIZE, 1e-30)
    for token, chance in chances.items():
        row[token] = chance
    return np.log(row)


class PlantedMasked:
    """Masked predictions by a function of the whole sequence, without BOS and EOS, and the place."""

    name, dtype, device = "planted", "float32", "cpu"

    def __init__(self, predict) -> None:  # type: ignore[no-untyped-def]
        self.predict, self.passes = predict, 0
        self.config: ModelConfig = small_config(objective="masked")

    def computing(self, deterministic: bool) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def log_probs(
        self,
        tokens: np.ndarray,
        borders: np.ndarray,
        mode: int,
        rows: np.ndarray | None = None,
        targets: np.ndarray | None = None,
    ) -> np.ndarray:
        self.passes += 1
        found = np.zeros((len(tokens), VOCAB_SIZE), np.float32)
        for start, end in itertools.pairwise(borders):
            assert (tokens[start], tokens[end - 1]) == (BOS, EOS)
            for place in range(start + 1, end - 1):
                found[place] = self.predict(tokens[start + 1 : end - 1], place - start - 1)
        return of_targets(found if rows is None else found[rows], targets)


STANDARD_TOKENS = range(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD)
