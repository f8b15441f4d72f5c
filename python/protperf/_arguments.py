"""Checks that NumPy and torch callers share: they see shapes and type names only."""

from __future__ import annotations

import numbers
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

from protperf._feature_maps import find_map
from protperf.errors import ConfigError, DtypeError, ShapeError
from protperf.threads import num_threads as num_threads

FLOATS = ("float32", "float64", "float16", "bfloat16")
_MAX_BYTES = 2**62


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
        if numel > _MAX_BYTES // 8:
            raise ShapeError(f"{name} has more elements than memory has addresses: {list(shape)}")


def check_omega(shape: Sequence[int] | None, dtype: str, q: Sequence[int], feature_map: str) -> None:
    """Refuse an omega that does not fit q or the map.

    Raises:
        ConfigError: None, where the map needs one.
        DtypeError: not a floating type.
        ShapeError: another width than head_dim, no rows, or another number of heads than q.
    """
    if shape is None:
        if find_map(feature_map).family != "activation":
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


def check_flag(name: str, value: Any) -> bool:
    """A bool, Python's or NumPy's.

    Raises:
        DtypeError: anything else: a text or a number could be meant in two ways.
    """
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise DtypeError(f"{name} must be True or False, not {_describe(value)}")


def check_integer(name: str, value: Any) -> int:
    """An integer of any kind but bool.

    Raises:
        DtypeError: anything else.
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise DtypeError(f"{name} must be an integer, not {_describe(value)}")


def check_positive(name: str, value: Any) -> int:
    """An integer of at least 1.

    Raises:
        DtypeError: not an integer; ConfigError: below 1.
    """
    number = check_integer(name, value)
    if number < 1:
        raise ConfigError(f"{name} is {number}; it must be at least 1")
    return number


def check_name(name: str, value: Any) -> str:
    """A string.

    Raises:
        DtypeError: anything else.
    """
    if not isinstance(value, str):
        raise DtypeError(f"{name} must be a string, not {_describe(value)}")
    return value


def _describe(value: Any) -> str:
    """None, or the value with its type where it is short, or the type."""
    if value is None:
        return "None"
    kind = type(value).__name__
    # Python refuses to write out an integer of thousands of digits.
    is_short = (
        abs(value) < 10**30 if isinstance(value, int) else isinstance(value, (str, float)) and len(repr(value)) < 40
    )
    return f"{kind} {value!r}" if is_short else kind


def check_epsilon(kernel_epsilon: Any) -> float | None:
    """A float, or None for the map's own.

    Raises:
        DtypeError: not a number.
        ConfigError: a number that no float holds.
    """
    if kernel_epsilon is None:
        return None
    if isinstance(kernel_epsilon, bool) or not isinstance(kernel_epsilon, numbers.Real):
        raise DtypeError(f"kernel_epsilon must be a number, not {_describe(kernel_epsilon)}")
    try:
        return float(kernel_epsilon)
    except OverflowError:
        raise ConfigError(f"kernel_epsilon is {_describe(kernel_epsilon)}, which no float holds") from None


def isa() -> str | None:
    """The instruction set that `PROTPERF_ISA` names, or None for the best of this machine; read at every call."""
    return os.environ.get("PROTPERF_ISA") or None


def check_draw(
    num_features: Any, head_dim: Any, sampler: Any, norm: Any, seed: Any, stream: Any
) -> tuple[int, int, str, str, int, tuple[int, int, int]]:
    """What omega is drawn by, as the native module takes it. It knows the samplers and norms.

    Raises:
        ConfigError: a number out of range; DtypeError: an argument of the wrong kind.
    """
    num_features, head_dim = check_positive("num_features", num_features), check_positive("head_dim", head_dim)
    seed = check_integer("seed", seed)
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed is {seed}; it must be from 0 to 2^64 - 1")
    sampler, norm = check_name("sampler", sampler), check_name("norm", norm)
    return num_features, head_dim, sampler, norm, seed, _stream(stream)


def _stream(stream: Any) -> tuple[int, int, int]:
    wrong = f"stream is {stream!r}; it must be three integers (layer, head, draw) from 0 to 2^32 - 1"
    try:
        parts = tuple(check_integer("stream", part) for part in stream)
    except TypeError:
        raise DtypeError(wrong) from None
    if len(parts) != 3 or not all(0 <= part < 2**32 for part in parts):
        raise ConfigError(wrong)
    return parts[0], parts[1], parts[2]
