"""What a trained network answers, whichever code computes it: log-probabilities, hidden states, and states to continue.

Everything that reads a model (scores, variants, embeddings, generation) is written over `Engine`, in NumPy. Tokens of
several sequences follow one another, `[N]`, with borders `[num_sequences + 1]`: nothing is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from protperf.lm.model.config import ModelConfig
from protperf.network import Pool

MASKED, CAUSAL = 0, 1
"""Modes of reading: every position sees all others, or only those before it."""

Tokens = NDArray[np.uint8]
Borders = NDArray[np.int64]
Places = NDArray[np.int64] | None
"""Places among tokens; None: all of them."""
Targets = Tokens | None
"""One token for each of some places; None: every token of the vocabulary."""


class CausalState(Protocol):
    """What left-to-right reading carries on: one state per sequence, of a size that does not depend on the length.

    With exact attention it holds all keys and values, and grows.
    """

    @property
    def positions(self) -> NDArray[np.int64]:
        """Tokens that each sequence has read, [num_sequences]."""
        ...

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> CausalState:
        """A copy of the states of some sequences, in this order. Repeated indices let sequences share a prefix."""
        ...

    def advance(
        self, tokens: Tokens, borders: Borders, rows: Places = None, targets: Targets = None
    ) -> NDArray[np.floating]:
        """Read on: the next tokens of each sequence, which may be none; the state is updated in place.

        Arguments and answers are those of `Engine.log_probs` in the mode CAUSAL for the sequences as a whole, but for
        the rows: these are among the new tokens.
        """
        ...

    def advance_hidden(self, tokens: Tokens, borders: Borders, layer: int = -1) -> NDArray[np.floating]:
        """Read on, as `advance` does, for the hidden states [N, model_dim] of the new tokens.

        The state is that after `advance`, so both may follow one another. `layer` is that of `Engine.hidden`.
        """
        ...


class Engine(Protocol):
    """A network that is ready to read sequences. Implementations may be called from several threads at once."""

    config: ModelConfig
    name: str
    """`native` or `torch`."""
    dtype: str
    """Type of what is computed and returned: `float32` or `float64`."""
    device: str

    def arithmetic(self, deterministic: bool) -> dict[str, object]:
        """What the last bits of the answers depend on besides the model: the engine, and what it counts on."""
        ...

    def computing(self, deterministic: bool) -> AbstractContextManager[None]:
        """To be held around calls: `deterministic` asks for the same bits with any number of threads.

        In a process forked from one that computed, this makes the engine usable, with a warning if that costs speed.
        """
        ...

    def log_probs(
        self, tokens: Tokens, borders: Borders, mode: int, rows: Places = None, targets: Targets = None
    ) -> NDArray[np.floating]:
        """Log-probabilities over the vocabulary, nats, [num_rows, vocabulary].

        Args:
            tokens, borders: shapes [N] and [num_sequences + 1].
            mode: MASKED or CAUSAL. A row of CAUSAL is the prediction of the token after it.
            rows: places among the N tokens whose predictions are wanted, in this order; None: all.
            targets: one token for each row, whose log-probabilities alone are wanted, [num_rows]: a device then brings
                no others back.
        """
        ...

    def hidden(self, tokens: Tokens, borders: Borders, mode: int, layer: int = -1) -> NDArray[np.floating]:
        """Hidden states [N, model_dim] of every token.

        Args:
            layer: 0 is the embedding, i the residual stream after block i, -1 the last of them, normalized: what the
                predictions are computed from.
        """
        ...

    def empty_state(self, num_sequences: int = 1) -> CausalState:
        """The state of sequences of which nothing has been read."""
        ...


@runtime_checkable
class PoolingEngine(Engine, Protocol):
    """An engine that makes one vector of the hidden states of a sequence where they are."""

    def pooled(
        self, tokens: Tokens, borders: Borders, mode: int, pools: Sequence[Pool], layer: int = -1
    ) -> NDArray[np.float64]:
        """Vectors [num_pools, model_dim] made of the states that `hidden` gives."""
        ...

    def empty_state(self, num_sequences: int = 1) -> PoolingState: ...


class PoolingState(CausalState, Protocol):
    """The state of a `PoolingEngine`."""

    def advance_pooled(
        self, tokens: Tokens, borders: Borders, pools: Sequence[Pool], layer: int = -1
    ) -> NDArray[np.float64]:
        """Read on, as `advance` does, for vectors made of the hidden states of the new tokens."""
        ...


def of_targets(log_probs: NDArray[np.floating], targets: Targets) -> NDArray[np.floating]:
    """Of rows [num_rows, vocabulary] what their targets have [num_rows]; all of it where there are none."""
    return log_probs if targets is None else log_probs[np.arange(len(log_probs)), targets]
