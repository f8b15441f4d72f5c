"""Checks of the arguments of torch functions, each made once, before anything is allocated."""

from __future__ import annotations

from typing import Any

import torch

from protperf import _arguments, _backends
from protperf._feature_maps import LogLinear, feature_dim, find_map
from protperf.errors import ConfigError, DeviceError, DtypeError, ShapeError
from protperf.torch.inputs import computed_type
from protperf.torch.log_linear import Parameters

__all__ = [
    "check_attention",
    "check_backend",
    "check_omega",
    "check_options",
    "check_parameters",
    "check_state",
    "check_tensor",
    "dtype_name",
    "num_features",
]


def dtype_name(tensor: torch.Tensor) -> str:
    """The name that torch and NumPy share, such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def check_tensor(name: str, tensor: Any, device: torch.device | None = None) -> None:
    """Refuse what is not a dense tensor, on `device` where one is given."""
    if not isinstance(tensor, torch.Tensor):
        raise DtypeError(f"{name} must be a torch tensor, not {type(tensor).__name__}")
    if tensor.is_nested:
        raise DtypeError(f"{name} is a nested tensor; pack its sequences into one and give their borders as cu_seqlens")
    if tensor.is_quantized:
        raise DtypeError(f"{name} is quantized; convert it with dequantize()")
    if tensor.layout != torch.strided:
        raise DtypeError(f"{name} has layout {tensor.layout}; only dense tensors are taken, convert it with to_dense()")
    # Told by its module, so that torch.distributed is not imported for it.
    if type(tensor).__module__.startswith(("torch.distributed", "torch.masked")):
        raise DtypeError(f"{name} is a {type(tensor).__name__}; only plain tensors are taken, such as its to_local()")
    if device is not None and tensor.device != device:
        raise DtypeError(f"{name} is on {tensor.device} but q is on {device}")


def check_options(feature_map: Any, causal: Any) -> bool:
    """Refuse a feature map that does not exist, and a `causal` that is not a bool; returns it.

    Raises:
        DtypeError, ConfigError: naming the argument.
    """
    find_map(_arguments.check_name("feature_map", feature_map))
    return _arguments.check_flag("causal", causal)


def check_backend(backend: Any, device: torch.device) -> str:
    """Refuse a backend that does not exist, and tensors where it does not compute; returns its name.

    Raises:
        DtypeError, ConfigError: not a name of a backend; DeviceError: tensors that are not on a CPU.
    """
    name = _backends.check_backend(backend)
    if name != "auto" and device.type not in ("cpu", "meta"):
        raise DeviceError(f"backend {name!r} takes tensors on a CPU but q is on {device}; move them, or say 'auto'")
    return name


def check_attention(q: Any, k: Any, v: Any, causal: bool, cu_seqlens: Any, key_padding_mask: Any) -> None:
    """Refuse tensors, borders and masks that no attention takes."""
    tensors = {"q": q, "k": k, "v": v}
    for name, tensor in tensors.items():
        check_tensor(name, tensor, q.device if isinstance(q, torch.Tensor) else None)
    shapes = {name: x.shape for name, x in tensors.items()}
    _arguments.check_tensors(shapes, {name: dtype_name(x) for name, x in tensors.items()}, causal)
    if not torch.compiler.is_compiling():
        _arguments.check_sizes(shapes)
    mask = None
    if key_padding_mask is not None:
        check_tensor("key_padding_mask", key_padding_mask, q.device)
        mask = (key_padding_mask.shape, dtype_name(key_padding_mask))
    if cu_seqlens is not None:
        check_tensor("cu_seqlens", cu_seqlens)
    _arguments.check_visibility(q.shape, k.shape, cu_seqlens is not None, mask)
    if cu_seqlens is not None:
        _arguments.check_segments(cu_seqlens.shape, dtype_name(cu_seqlens), _values(cu_seqlens), q.shape[2])


def _values(cu_seqlens: torch.Tensor) -> list[int] | None:
    """Borders as numbers, or None where they have none yet."""
    if torch.compiler.is_compiling() or cu_seqlens.device.type == "meta":
        return None
    try:
        values: list[int] = cu_seqlens.tolist()
    except RuntimeError as error:
        raise ConfigError("cu_seqlens has no values here: it cannot be mapped over with torch.func.vmap") from error
    return values


def check_omega(omega: Any, q: torch.Tensor, feature_map: str) -> None:
    """Refuse an omega that does not fit q or the map."""
    if omega is None:
        _arguments.check_omega(None, "", q.shape, feature_map)
        return
    check_tensor("omega", omega, q.device)
    _arguments.check_omega(omega.shape, dtype_name(omega), q.shape, feature_map)


def check_parameters(record: LogLinear, q: torch.Tensor, omega: Any, kernel_epsilon: Any) -> None:
    """Refuse parameters that do not fit q or each other, and arguments that such a map does not take."""
    if omega is not None:
        raise ConfigError("omega cannot be given together with a LogLinear feature_map, which has directions")
    if _arguments.check_epsilon(kernel_epsilon) is not None:
        raise ConfigError("kernel_epsilon belongs to activation maps; a LogLinear feature_map takes none")
    needed: tuple[int, ...] = ()
    for name, value in zip(Parameters._fields, record.as_tuple(), strict=True):
        if value is None and needed:
            continue
        check_tensor(name, value, q.device)
        if dtype_name(value) not in _arguments.FLOATS:
            raise DtypeError(f"{name} has type {dtype_name(value)}; convert it to float32 or float64")
        if not needed:
            # Heads, if there are any, and features of each.
            needed = _rows_of(value, q)
        axes = {"directions": (*needed, q.shape[3]), "quadratic": (*needed[:-1], q.shape[3]), "constants": needed}
        if tuple(value.shape) != axes[name.partition("_")[2]]:
            found = f"{name} has shape {list(value.shape)}"
            raise ShapeError(f"{found}, needed is {list(axes[name.partition('_')[2]])} as query_directions has it")


def _rows_of(directions: torch.Tensor, q: torch.Tensor) -> tuple[int, ...]:
    """Sizes of all axes but the last of directions that fit q."""
    shape = directions.shape
    if len(shape) not in (2, 3):
        raise ShapeError(f"query_directions has {len(shape)} axes; it must be [F,D] or [H,F,D]")
    if shape[-1] != q.shape[3]:
        raise ShapeError(f"query_directions has {shape[-1]} columns but q has head_dim {q.shape[3]}")
    if shape[-2] == 0:
        raise ShapeError("query_directions has no rows; at least 1 feature is needed")
    if len(shape) == 3 and shape[0] != q.shape[1]:
        raise ShapeError(f"query_directions has {shape[0]} heads but q has {q.shape[1]}")
    return tuple(shape[:-1])


def num_features(feature_map: str, q: torch.Tensor, omega: torch.Tensor | None) -> int:
    """F of a checked call of a map with a name."""
    return feature_dim(feature_map, q.shape[3] if omega is None else omega.shape[-2])


def check_state(state: Any, q: torch.Tensor, v: torch.Tensor, features: int, cu_seqlens: Any) -> None:
    """Refuse a state of another shape or type than that of the computation with so many features."""
    check_tensor("state", state, q.device)
    num_sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    needed = [num_sequences, q.shape[1], features, v.shape[3] + 2]
    if list(state.shape) != needed:
        axes = "[B,H,F,2+E]" if cu_seqlens is None else "[num_segments,H,F,2+E]"
        raise ShapeError(f"state has shape {list(state.shape)}, needed is {axes} {needed}")
    if state.dtype != computed_type(q.dtype):
        needed_type = str(computed_type(q.dtype)).removeprefix("torch.")
        raise DtypeError(f"state has type {dtype_name(state)} but the computation is in {needed_type}")
