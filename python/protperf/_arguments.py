"""Checks that NumPy and torch callers share: they see shapes and type names only."""

from __future__ import annotations

import functools
import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

from protperf import _native
from protperf.errors import ConfigError, DtypeError, ShapeError

FLOATS = ("float32", "float64", "float16", "bfloat16")
_MOST = 2**62


def check_tensors(shapes: Mapping[str, Sequence[int]], dtypes: dict[str, str], causal: bool) -> None:
    """Refuse shapes and types of q, k and v that no attention takes.

    Raises:
        DtypeError: not a floating type, or types that differ.
        ShapeError: not four axes, or sizes that disagree.
    """
    for name, dtype in dtypes.items():
        if dtype not in FLOATS:
            raise DtypeError(f"{name} has type {dtype}; convert it to float32 or float64")
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise DtypeError(f"q, k and v must have one type, found {found}")
    axes = {"q": "[B,H,L,D]", "k": "[B,Hk,S,D]", "v": "[B,Hk,S,E]"}
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ShapeError(f"{name} has {len(shape)} axes; it must be {axes[name]}")
    q, k, v = shapes["q"], shapes["k"], shapes["v"]
    if k[0] != q[0]:
        raise ShapeError(f"k has batch {k[0]} but q has batch {q[0]}")
    if k[3] != q[3]:
        raise ShapeError(f"k has head_dim {k[3]} but q has head_dim {q[3]}")
    if tuple(v[:3]) != tuple(k[:3]):
        raise ShapeError(f"v has [B,Hk,S] {list(v[:3])} but k has {list(k[:3])}")
    if (k[1] == 0 and q[1] != 0) or (k[1] != 0 and q[1] % k[1] != 0):
        raise ShapeError(f"q has {q[1]} heads, not a multiple of the {k[1]} heads of k")
    if q[3] == 0:
        raise ShapeError("q has head_dim 0")
    if causal and q[2] != k[2]:
        raise ShapeError(f"k has length {k[2]} but causal attention needs q's length {q[2]}")


def check_sizes(shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse tensors and outputs with more elements than memory has addresses.

    Apart from `check_tensors`: in a traced graph this would become a bound on every length.
    """
    q, v = shapes["q"], shapes["v"]
    for name, shape in (*shapes.items(), ("the output", (*q[:3], v[3]))):
        numel = 1
        for n in shape:
            numel = numel * n
        if numel > _MOST // 8:
            raise ShapeError(f"{name} has more elements than memory has addresses: {list(shape)}")


def check_omega(shape: Sequence[int] | None, dtype: str, q: Sequence[int], feature_map: str) -> None:
    """Refuse an omega that does not fit q or the map."""
    if shape is None:
        if feature_map not in ("relu", "elu1"):
            raise ConfigError(f"omega is needed by feature_map {feature_map!r}; draw it with draw_projection")
        return
    if dtype not in FLOATS:
        raise DtypeError(f"omega has type {dtype}; convert it to float32 or float64")
    if len(shape) not in (2, 3):
        raise ShapeError(f"omega has {len(shape)} axes; it must be [M,D] or [H,M,D]")
    if shape[-1] != q[3]:
        raise ShapeError(f"omega has {shape[-1]} columns but q has head_dim {q[3]}; draw it with head_dim={q[3]}")
    if shape[-2] == 0:
        raise ShapeError("omega has no rows; num_features must be at least 1")
    if len(shape) == 3 and shape[0] != q[1]:
        raise ShapeError(f"omega has {shape[0]} heads but q has {q[1]}")


def check_segments(shape: Sequence[int], dtype: str, borders: Sequence[int] | None, q_len: int) -> None:
    """Refuse segment borders that are not `[num_segments+1]` integers from 0 to L; `borders` None skips the values."""
    if dtype not in ("int32", "int64"):
        raise DtypeError(f"cu_seqlens has type {dtype}; convert it to int32 or int64")
    if len(shape) != 1:
        raise ShapeError(f"cu_seqlens has {len(shape)} axes; it must be [num_segments+1]")
    if shape[0] < 1:
        raise ShapeError("cu_seqlens is empty; it needs num_segments + 1 borders from 0 to L")
    if borders is None:
        return
    if borders[0] != 0 or borders[-1] != q_len:
        raise ConfigError(f"cu_seqlens runs from {borders[0]} to {borders[-1]} but must run from 0 to L = {q_len}")
    for i in range(1, len(borders)):
        if borders[i] < borders[i - 1]:
            raise ConfigError(f"cu_seqlens decreases at index {i}")


def check_visibility(
    q: Sequence[int], k: Sequence[int], has_segments: bool, mask: tuple[Sequence[int], str] | None
) -> None:
    """Refuse a padding mask of the wrong shape or type, and segments where they have no meaning."""
    if mask is not None:
        shape, dtype = mask
        if has_segments:
            raise ConfigError("key_padding_mask cannot be given together with cu_seqlens")
        if dtype != "bool":
            raise DtypeError(f"key_padding_mask has type {dtype}; it must be bool, True where a key is padding")
        if tuple(shape) != (q[0], k[2]):
            raise ShapeError(f"key_padding_mask has shape {list(shape)} but [B,S] is {[q[0], k[2]]}")
    if has_segments and (q[0] != 1 or q[2] != k[2]):
        raise ShapeError(f"cu_seqlens needs batch 1 and L = S, but batch is {q[0]}, L {q[2]} and S {k[2]}")


def check_epsilon(kernel_epsilon: Any) -> float | None:
    """A float, or None for the map's own."""
    if kernel_epsilon is None:
        return None
    if isinstance(kernel_epsilon, bool) or not isinstance(kernel_epsilon, numbers.Real):
        raise DtypeError(f"kernel_epsilon must be a number, not {type(kernel_epsilon).__name__}")
    return float(kernel_epsilon)


def isa() -> str | None:
    """The instruction set that `PROTPERF_ISA` names, or None for the best of this machine; read at every call."""
    return os.environ.get("PROTPERF_ISA") or None


def num_threads(fallback: int | None = None) -> int:
    """Threads of a call: `PROTPERF_NUM_THREADS`, else the cores this process may use and no more than `fallback`."""
    text = os.environ.get("PROTPERF_NUM_THREADS", "")
    if text:
        if not text.isdigit() or not 1 <= int(text) <= 4096:
            raise ConfigError(f"PROTPERF_NUM_THREADS is {text!r}; it must be a number from 1 to 4096")
        return int(text)
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = _cores_allowed(len(affinity(0)) if affinity else 0)
    return allowed if fallback is None else min(fallback, allowed)


@functools.lru_cache(maxsize=8)
def _cores_allowed(_affinity: int) -> int:
    """Asked again when the affinity has another size: the quota is read from files, too slow for every call."""
    return _native.cores_allowed()
