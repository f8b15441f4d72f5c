"""A trained network that reads sequences without torch, on a CPU or a GPU: the native module behind NumPy arrays.

`Network(step)` verifies one step of a run (its manifest, digests and tensors) and packs its weights; `protperf.lm.load`
finds the step and makes an engine of this. Tokens of several sequences follow one another, `[N]`, with borders
`[num_sequences + 1]`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from protperf import _arguments, _native
from protperf.errors import ConfigError, OutOfMemory
from protperf.io import VOCABULARY
from protperf.threads import num_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Network", "NetworkState", "Pool"]

_KINDS = ("mean", "max", "attention")


class Pool(NamedTuple):
    """A vector that is made of hidden states of one sequence, in float64. Of no tokens it is NaN.

    Args:
        sequence: its number in the batch.
        start, end: its tokens from start up to end, among those that are read.
        kind: `mean`; `max` along each axis; or `attention`, the mean with weights softmax_i(sqrt(C) cos(h_i, h_query)).
        query: a token of the sequence.
    """

    sequence: int
    start: int
    end: int
    kind: str
    query: int = 0


class Network:
    """A network of a verified step. Threads may call it at once; a forked process may go on with it.

    Args:
        step: directory of one step.
        model_dim, num_layers: sizes of the network, which decide those of hidden states.
        dtype: type of what is computed and returned, `float32` or `float64`.
        device: `cpu`, or `wgpu` for the GPU that `protperf.gpu` says is chosen: the weights are copied to it once, and
            only what is asked for is copied back. It computes in float32, and a forked process has to load anew.

    Raises:
        CheckpointError: a file is missing, damaged or not as the configuration says; OutOfMemory; ConfigError: float64
        on a GPU; DeviceError: the instruction set that PROTPERF_ISA names is not there, or no GPU, or one that failed.
    """

    def __init__(
        self,
        step: str | os.PathLike[str],
        model_dim: int,
        num_layers: int,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        self.dtype = dtype
        self.model_dim, self.num_layers = model_dim, num_layers
        self._native = _native.Network(step, dtype, device, isa=_arguments.isa(), num_threads=num_threads())

    def log_probs(
        self,
        tokens: NDArray[Any],
        borders: NDArray[Any],
        causal: bool,
        rows: NDArray[Any] | None = None,
        targets: NDArray[Any] | None = None,
    ) -> NDArray[np.floating]:
        """Log-probabilities over the vocabulary, nats, [num_rows, vocabulary].

        Args:
            causal: each token sees those before it and predicts the next; else it sees all of its sequence.
            rows: places among the N tokens; None: all.
            targets: one token for each row [num_rows], whose log-probabilities alone are wanted, [num_rows].

        Raises:
            ConfigError: a token, row or target out of range; ShapeError: borders that are not those of the tokens, or
            targets that are not those of the rows; OutOfMemory.
        """
        tokens, borders, rows = _inputs(tokens, borders, rows)
        targets, out = _answers(tokens, rows, targets, self.dtype)
        self._native.log_probs(tokens, borders, causal, rows, targets, out, num_threads=num_threads())
        return out

    def hidden(
        self, tokens: NDArray[Any], borders: NDArray[Any], causal: bool, layer: int = -1
    ) -> NDArray[np.floating]:
        """Hidden states [N, model_dim]: 0 the embedding, i after block i, -1 the last, normalized.

        Raises:
            As `log_probs`; ConfigError: a layer that the network does not have.
        """
        tokens, borders, _ = _inputs(tokens, borders, None)
        out = _empty((len(tokens), self.model_dim), self.dtype)
        layer = _checked(layer, self.num_layers)
        self._native.hidden(tokens, borders, causal, layer, out, num_threads=num_threads())
        return out

    def pooled(
        self, tokens: NDArray[Any], borders: NDArray[Any], causal: bool, pools: Sequence[Pool], layer: int = -1
    ) -> NDArray[np.float64]:
        """Vectors of sequences [num_pools, model_dim], made of the hidden states that `hidden` gives.

        Raises:
            As `hidden`; ConfigError: a pool of what is not read.
        """
        tokens, borders, _ = _inputs(tokens, borders, None)
        numbers, out = _pools(pools, self.model_dim)
        layer = _checked(layer, self.num_layers)
        self._native.pooled(tokens, borders, causal, layer, numbers, out, num_threads=num_threads())
        return out

    def empty_state(self, num_sequences: int = 1) -> NetworkState:
        """The state of sequences of which nothing has been read."""
        return NetworkState(self, self._native.empty_state(num_sequences))


class NetworkState:
    """What left-to-right reading carries on, one state per sequence; for one thread at a time.

    A call that is interrupted or runs out of memory leaves it of no use, and later ones say so.
    """

    def __init__(self, network: Network, native: _native.NetworkState) -> None:
        self._network, self._native = network, native

    @property
    def positions(self) -> NDArray[np.int64]:
        """Tokens that each sequence has read."""
        import numpy as np

        return np.frombuffer(self._native.positions(), np.int64)

    def select(self, indices: Any) -> NetworkState:
        """A copy of the states of some sequences, in this order; an index may come more than once.

        Raises:
            ConfigError: an index out of range; OutOfMemory.
        """
        import numpy as np

        return NetworkState(self._network, self._native.select(np.require(indices, np.int64, ["C", "A"])))

    def advance(
        self,
        tokens: NDArray[Any],
        borders: NDArray[Any],
        rows: NDArray[Any] | None = None,
        targets: NDArray[Any] | None = None,
    ) -> NDArray[np.floating]:
        """Read the next tokens of each sequence; answers as `Network.log_probs`, with rows among the new tokens."""
        tokens, borders, rows = _inputs(tokens, borders, rows)
        targets, out = _answers(tokens, rows, targets, self._network.dtype)
        self._native.advance(tokens, borders, rows, targets, out, num_threads=num_threads())
        return out

    def advance_hidden(self, tokens: NDArray[Any], borders: NDArray[Any], layer: int = -1) -> NDArray[np.floating]:
        """Read on as `advance` does, for the hidden states of the new tokens; `layer` is that of `Network.hidden`."""
        tokens, borders, _ = _inputs(tokens, borders, None)
        out = _empty((len(tokens), self._network.model_dim), self._network.dtype)
        layer = _checked(layer, self._network.num_layers)
        self._native.advance_hidden(tokens, borders, layer, out, num_threads=num_threads())
        return out

    def advance_pooled(
        self, tokens: NDArray[Any], borders: NDArray[Any], pools: Sequence[Pool], layer: int = -1
    ) -> NDArray[np.float64]:
        """Read on as `advance` does, for vectors made of the hidden states of the new tokens, as `Network.pooled`."""
        tokens, borders, _ = _inputs(tokens, borders, None)
        numbers, out = _pools(pools, self._network.model_dim)
        layer = _checked(layer, self._network.num_layers)
        self._native.advance_pooled(tokens, borders, layer, numbers, out, num_threads=num_threads())
        return out


def _inputs(tokens: Any, borders: Any, rows: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    import numpy as np

    def usable(array: Any, dtype: Any) -> NDArray[Any]:
        return np.require(array, dtype, ["C", "A"])

    return usable(tokens, np.uint8), usable(borders, np.int64), None if rows is None else usable(rows, np.int64)


def _answers(
    tokens: NDArray[Any], rows: NDArray[Any] | None, targets: Any, dtype: str
) -> tuple[NDArray[Any] | None, NDArray[Any]]:
    """Targets as the native module takes them, and the array that it fills."""
    import numpy as np

    num_rows = len(tokens if rows is None else rows)
    if targets is None:
        return None, _empty((num_rows, len(VOCABULARY)), dtype)
    return np.require(targets, np.uint8, ["C", "A"]), _empty((num_rows,), dtype)


def _pools(pools: Sequence[Pool], model_dim: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pools as the native module takes them, and the array that it fills."""
    import numpy as np

    wrong = next((pool.kind for pool in pools if pool.kind not in _KINDS), None)
    if wrong is not None:
        raise ConfigError(f"kind of a pool is {wrong!r}; use {', '.join(_KINDS)}")
    rows = [[pool.sequence, pool.start, pool.end, _KINDS.index(pool.kind), pool.query] for pool in pools]
    return np.array(rows, np.int64), _empty((len(pools), model_dim), "float64")


def _checked(layer: int, num_layers: int) -> int:
    if not -1 <= layer <= num_layers:
        raise ConfigError(f"layer is {layer}; it must be from -1 to {num_layers}")
    return layer


def _empty(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    import numpy as np

    try:
        return np.empty(shape, dtype)
    except MemoryError as error:
        raise OutOfMemory(f"could not allocate an array of shape {list(shape)}: {error}") from error
