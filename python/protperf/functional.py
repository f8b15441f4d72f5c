"""Attention on NumPy arrays. NumPy is imported when a function is first called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from protperf import _arguments, _native
from protperf.errors import ConfigError, DtypeError, OutOfMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = ["build_info", "draw_projection", "favor_attention", "feature_maps", "softmax_attention"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _tells_memory(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn NumPy's MemoryError into ours, so that one `except protperf.Error` sees both."""

    @functools.wraps(function)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except OutOfMemory:
            raise
        except MemoryError as error:
            raise OutOfMemory(str(error) or "the interpreter could not allocate memory") from error

    return told


@_tells_memory
def favor_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    omega: ArrayLike | None,
    *,
    feature_map: str = "positive",
    causal: bool = False,
    cu_seqlens: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
    kernel_epsilon: float | None = None,
) -> NDArray[Any]:
    """Estimate softmax attention in time linear in sequence length.

    Shapes: q [B,H,L,D], k [B,Hk,S,D], v [B,Hk,S,E] with H a multiple of Hk, omega [M,D] or [H,M,D]; returns [B,H,L,E]
    in q's type. q and k are each scaled by D^-1/4. float16 is computed in float32.

    Args:
        omega: random directions from `draw_projection`; None, for `relu` and `elu1` only, uses the inputs themselves.
        feature_map: a name from `feature_maps()`.
        causal: position i attends to positions <= i; needs L == S. No later row changes a bit of an earlier one.
        cu_seqlens: borders [num_segments+1] of packed sequences, int32 or int64, from 0 to L; needs B = 1.
        key_padding_mask: bool [B,S], True where a key is padding and ignored.
        kernel_epsilon: added to every feature of `relu` and `elu1`; None takes the map's own (1e-3 for `relu`).

    A row that sees no key gives 0. A row of q, k or v with a number that is not finite makes NaN of the outputs that
    see it and of nothing else.

    Raises:
        ShapeError: two arguments disagree on an axis; the message names both.
        DtypeError: an integer array, or types that differ.
        ConfigError: an unknown feature map, or options that contradict each other.

    Source: Choromanski et al. 2021, arXiv:2009.14794, Lemma 1.
    """
    import numpy as np

    (q, k, v), result = _tensors(q, k, v, causal)
    if feature_map not in _native.feature_maps():
        raise ConfigError(f"feature_map {feature_map!r} is unknown; choose one of {', '.join(_native.feature_maps())}")
    directions = None if omega is None else np.asarray(omega)
    _arguments.check_omega(
        None if directions is None else directions.shape,
        "" if directions is None else directions.dtype.name,
        q.shape,
        feature_map,
    )
    out, den = _empty((*q.shape[:3], v.shape[3]), q.dtype), _empty((*q.shape[:3], 2), q.dtype)
    _native.favor_forward(
        q,
        k,
        v,
        None if directions is None else np.require(directions, np.float64, ["C", "A"]),
        out,
        den,
        feature_map=feature_map,
        causal=bool(causal),
        kernel_epsilon=_arguments.check_epsilon(kernel_epsilon),
        isa=_arguments.isa(),
        num_threads=_arguments.num_threads(),
        **_visibility(q, k, cu_seqlens, key_padding_mask),
    )
    return out.astype(result, copy=False)


@_tells_memory
def softmax_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    causal: bool = False,
    cu_seqlens: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
) -> NDArray[Any]:
    """Exact softmax attention, computed in float64: the truth that `favor_attention` estimates. Quadratic in length.

    Shapes and arguments as in `favor_attention`; logits are q.k / sqrt(D).

    Raises:
        ShapeError, DtypeError, ConfigError: as `favor_attention`.
    """
    (q, k, v), result = _tensors(q, k, v, causal)
    out = _empty((*q.shape[:3], v.shape[3]), q.dtype)
    _native.softmax_attention(q, k, v, out, causal=bool(causal), **_visibility(q, k, cu_seqlens, key_padding_mask))
    return out.astype(result, copy=False)


@_tells_memory
def draw_projection(
    num_features: int,
    head_dim: int,
    *,
    sampler: str = "orthogonal",
    norm: str = "chi",
    seed: int = 0,
    stream: tuple[int, int, int] = (0, 0, 0),
) -> NDArray[np.float64]:
    """Draw the random directions omega, [num_features, head_dim] float64: the same bits on every machine.

    Args:
        sampler: `orthogonal` (blocks of head_dim rows of a Haar-distributed rotation) or `iid`.
        norm: `chi` (norms of normal vectors) or `sqrt_dim`.
        seed: 0 to 2^64 - 1.
        stream: (layer, head, draw), each 0 to 2^32 - 1: independent numbers for each.

    Raises:
        ConfigError: a size below 1, an unknown name, or a seed out of range.

    Source: Choromanski et al. 2021, arXiv:2009.14794, section 2.4; Mezzadri 2007, arXiv:math-ph/0609050.
    """
    import operator

    num_features, head_dim, seed = operator.index(num_features), operator.index(head_dim), operator.index(seed)
    for name, size in (("num_features", num_features), ("head_dim", head_dim)):
        if size < 1:
            raise ConfigError(f"{name} is {size}; it must be at least 1")
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed is {seed}; it must be from 0 to 2^64 - 1")
    parts = tuple(operator.index(part) for part in stream)
    if len(parts) != 3 or not all(0 <= part < 2**32 for part in parts):
        raise ConfigError(f"stream is {stream}; it must be three integers (layer, head, draw) from 0 to 2^32 - 1")
    import numpy as np

    omega = _empty((num_features, head_dim), np.dtype(np.float64))
    _native.draw_projection(omega, num_features, head_dim, sampler, norm, seed, parts)
    return omega


def feature_maps() -> tuple[str, ...]:
    """Names of the feature maps that `favor_attention` takes."""
    return _native.feature_maps()


def build_info() -> dict[str, Any]:
    """What this build is and what it runs on: version, profile, isa, isas, num_threads, target."""
    return {**_native.build_info(), "num_threads": _arguments.num_threads()}


def _tensors(q: ArrayLike, k: ArrayLike, v: ArrayLike, causal: bool) -> tuple[list[NDArray[Any]], np.dtype[Any]]:
    import numpy as np

    arrays = {"q": np.asarray(q), "k": np.asarray(k), "v": np.asarray(v)}
    shapes = {name: a.shape for name, a in arrays.items()}
    _arguments.check_tensors(shapes, {name: a.dtype.name for name, a in arrays.items()}, causal)
    _arguments.check_sizes(shapes)
    result = arrays["q"].dtype
    computed = np.dtype(np.float64 if result.itemsize == 8 else np.float32)
    return [_usable(a, computed) for a in arrays.values()], result


def _usable(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array in native byte order, aligned, with steps that the kernels can walk; itself where it is so already."""
    import numpy as np

    if not array.size:
        # NumPy calls memory without elements aligned wherever it lies; the native module does not.
        return np.empty(array.shape, dtype)
    walks = array.dtype == dtype and array.dtype.isnative and array.flags.aligned and array.ndim == 4
    if walks and array.strides[3] == array.itemsize and not any(s % array.itemsize for s in array.strides):
        return array
    return np.require(array, dtype, ["C", "A"])


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    import numpy as np

    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise OutOfMemory(f"could not allocate an array of shape {list(shape)}: {error}") from error


def _visibility(
    q: NDArray[Any], k: NDArray[Any], cu_seqlens: ArrayLike | None, key_padding_mask: ArrayLike | None
) -> dict[str, NDArray[Any] | None]:
    import numpy as np

    mask = None if key_padding_mask is None else np.asarray(key_padding_mask)
    borders = None if cu_seqlens is None else np.asarray(cu_seqlens)
    _arguments.check_visibility(
        q.shape, k.shape, borders is not None, None if mask is None else (mask.shape, mask.dtype.name)
    )
    if borders is not None:
        if borders.dtype.kind == "b":
            raise DtypeError("cu_seqlens has type bool; convert it to int32 or int64")
        _arguments.check_segments(borders.shape, borders.dtype.name, borders.tolist(), q.shape[2])
        borders = np.require(borders, np.int64, ["C", "A"])
    return {
        "cu_seqlens": borders,
        "key_padding_mask": None if mask is None else np.ascontiguousarray(mask).view(np.uint8),
    }
