"""Attention on NumPy arrays and on those of other libraries. NumPy is imported when a function is first called."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from protperf import _arguments, _native
from protperf._array_arguments import map_arguments, visibility_arguments
from protperf._arrays import as_array
from protperf._backends import check_backend, log_choice
from protperf._feature_maps import FEATURE_MAPS, LogLinear
from protperf.errors import OutOfMemory
from protperf.threads import num_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LogLinear",
    "build_info",
    "draw_projection",
    "favor_attention",
    "feature_maps",
    "norms",
    "samplers",
    "softmax_attention",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _translate_out_of_memory(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn NumPy's MemoryError into ours, so that one `except protperf.Error` catches both."""

    @functools.wraps(function)
    def translated(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except OutOfMemory:
            raise
        except MemoryError as error:
            raise OutOfMemory(str(error) or "the interpreter could not allocate memory") from error

    return translated


@_translate_out_of_memory
def favor_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    omega: ArrayLike | None,
    *,
    feature_map: str | LogLinear = "positive",
    causal: bool = False,
    cu_seqlens: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
    kernel_epsilon: float | None = None,
    backend: str = "auto",
) -> NDArray[Any]:
    """Estimate softmax attention in time linear in sequence length.

    Shapes: q [B,H,L,D], k [B,Hk,S,D], v [B,Hk,S,E] with H a multiple of Hk, omega [M,D] or [H,M,D]; returns [B,H,L,E]
    in q's type. q and k are each scaled by D^-1/4. 16-bit types are computed in float32, but see `backend`. Arrays may
    be those of any library that speaks DLPack, such as JAX, while their memory is the CPU's; the result is NumPy's.

    Args:
        omega: random directions from `draw_projection`; None uses the inputs themselves (activation maps only).
        feature_map: a name from `feature_maps()`, or a `LogLinear` with omega None.
        causal: position i attends to positions <= i; needs L == S. No later row changes a bit of an earlier one.
        cu_seqlens: borders [num_segments+1] of packed sequences, int32 or int64, from 0 to L; needs B = 1.
        key_padding_mask: bool [B,S], True where a key is padding and ignored.
        kernel_epsilon: added to every feature of an activation map; None takes the map's own (1e-3 for `relu`).
        backend: what computes, a name from `backends()`: `auto` is the fastest for such arrays that is not a GPU,
            `cpu` computes in float32 or float64, `cpu-bf16` rounds the factors of products to bf16 and sums in float32
            (off by some 0.3 %; not for float64; `auto` takes it for bfloat16 on a processor with AMX), `reference` is
            the plain float64 form that the others are tested against, `wgpu` a GPU (`protperf.gpu` lists them; not for
            float64; arrays are copied to it and back).

    A row that sees no key gives 0. A row of q, k or v with a number that is not finite makes NaN of the outputs that
    see it and of nothing else; such a number in omega, of every output of its heads. Do not write to an array while a
    call in another thread reads it: what the call then computes is undefined.

    Raises:
        ShapeError: two arguments disagree on an axis; the message names both.
        DtypeError: an integer array, types that differ, or an argument of the wrong kind.
        ConfigError: an unknown feature map or backend, or options that contradict each other.
        DeviceError: an array on a GPU; or `backend="wgpu"` without a GPU, or with one that failed. The message says
            what would mend it.

    Source: Choromanski et al. 2021, arXiv:2009.14794, Lemma 1.
    """
    backend = check_backend(backend)
    causal = _arguments.check_flag("causal", causal)
    (q, k, v), result = _tensors(q, k, v, causal)
    log_choice(backend, _stored(q.dtype))
    directions, of_map = map_arguments(feature_map, omega, kernel_epsilon, q.shape)
    visibility = visibility_arguments(q.shape, k.shape, cu_seqlens, key_padding_mask)
    out, den = _empty((*q.shape[:3], v.shape[3]), q.dtype), _empty((*q.shape[:3], 2), _computed(q.dtype))
    _native.favor_forward(
        _buffer(q),
        _buffer(k),
        _buffer(v),
        directions,
        _buffer(out),
        den,
        stored=_stored(q.dtype),
        causal=causal,
        backend=backend,
        isa=_arguments.isa(),
        num_threads=num_threads(),
        **of_map,
        **visibility,
    )
    return out.astype(result, copy=False)


@_translate_out_of_memory
def softmax_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    causal: bool = False,
    cu_seqlens: ArrayLike | None = None,
    key_padding_mask: ArrayLike | None = None,
) -> NDArray[Any]:
    """Exact softmax attention, the truth that `favor_attention` estimates. Quadratic in length.

    Shapes, types and arguments as in `favor_attention`; logits are q.k / sqrt(D). Scaled queries and keys are limited
    to 1e15, so that every logit is finite.

    Raises:
        ShapeError, DtypeError, ConfigError: as `favor_attention`.
    """
    causal = _arguments.check_flag("causal", causal)
    (q, k, v), result = _tensors(q, k, v, causal)
    out = _empty((*q.shape[:3], v.shape[3]), q.dtype)
    _native.softmax_attention(
        _buffer(q),
        _buffer(k),
        _buffer(v),
        _buffer(out),
        causal=causal,
        stored=_stored(q.dtype),
        isa=_arguments.isa(),
        num_threads=num_threads(),
        **visibility_arguments(q.shape, k.shape, cu_seqlens, key_padding_mask),
    )
    return out.astype(result, copy=False)


@_translate_out_of_memory
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
        sampler: a name from `samplers()`: `orthogonal` (blocks of head_dim rows of a Haar-distributed rotation), `iid`,
            `simplex` (blocks that are a rotated regular simplex: smaller errors at no cost), `hadamard` (products of
            Hadamard matrices and random signs: fast to draw, off by a little).
        norm: a name from `norms()`: `chi` (norms of normal vectors), `sqrt_dim`.
        seed: 0 to 2^64 - 1.
        stream: (layer, head, draw), each 0 to 2^32 - 1: independent numbers for each.

    Raises:
        ConfigError: a size below 1, an unknown name, or a number out of range.
        DtypeError: an argument of the wrong kind.

    Source: Choromanski et al. 2021, arXiv:2009.14794, section 2.4; Mezzadri 2007, arXiv:math-ph/0609050.
    """
    draw = _arguments.check_draw(num_features, head_dim, sampler, norm, seed, stream)
    import numpy as np

    omega = _empty(draw[:2], np.dtype(np.float64))
    _native.draw_projection(omega, *draw)
    return omega


def feature_maps() -> tuple[str, ...]:
    """Names of the feature maps that `favor_attention` takes."""
    return tuple(FEATURE_MAPS)


def samplers() -> tuple[str, ...]:
    """Names of the samplers that `draw_projection` takes, its default first."""
    return _native.samplers()


def norms() -> tuple[str, ...]:
    """Names of the norms that `draw_projection` takes, its default first."""
    return _native.norms()


def build_info() -> dict[str, Any]:
    """What this build is and what it runs on: version, profile, isa, isas, bf16, num_threads, target.

    `bf16` is what multiplies matrices that are rounded to bf16: `amx`, or `as float32`, which is no faster.
    """
    return {**_native.build_info(), "num_threads": num_threads()}


def _tensors(q: ArrayLike, k: ArrayLike, v: ArrayLike, causal: bool) -> tuple[list[NDArray[Any]], np.dtype[Any]]:
    """q, k and v as the native module reads them, and the type of the result: q's, byte order included."""
    arrays = {"q": as_array("q", q), "k": as_array("k", k), "v": as_array("v", v)}
    shapes = {name: a.shape for name, a in arrays.items()}
    _arguments.check_tensors(shapes, {name: a.dtype.name for name, a in arrays.items()}, causal)
    _arguments.check_sizes(shapes)
    return [_usable(a, a.dtype.newbyteorder("=")) for a in arrays.values()], arrays["q"].dtype


def _computed(stored: np.dtype[Any]) -> np.dtype[Any]:
    """The type that is computed in."""
    import numpy as np

    return np.dtype(np.float64 if stored.itemsize == 8 else np.float32)


def _stored(dtype: np.dtype[Any]) -> str | None:
    """The name of a type that the buffer protocol lacks."""
    return dtype.name if dtype.itemsize == 2 else None


def _buffer(array: NDArray[Any]) -> NDArray[Any]:
    """The array, its bits as integers where the buffer protocol lacks its type."""
    import numpy as np

    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def _usable(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array, or a copy where byte order, alignment or strides are not those that the kernels read."""
    import numpy as np

    if not array.size:
        # NumPy calls an array without elements aligned wherever its memory lies; the native module does not.
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
