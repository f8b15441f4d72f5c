"""The operators of the native core: `torch.ops.protperf.favor` and its backward, with fakes and a gradient rule.

Each is defined with torch's `Library` and a Python body that calls the binding, so that MemoryError, TypeError
and KeyboardInterrupt pass unchanged. Bodies hand NumPy views of the tensors to the binding: no copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import library

from protperf import _arguments, _native
from protperf.torch import reference
from protperf.torch.memory import tells_memory

_OPTIONS = "str feature_map, bool causal, float kernel_epsilon, Tensor? cu_seqlens, Tensor? key_padding_mask"
_library = library.Library("protperf", "DEF")
_library.define(f"favor(Tensor q, Tensor k, Tensor v, Tensor? omega, {_OPTIONS}) -> (Tensor, Tensor)")
_library.define(
    "favor_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? omega, Tensor out, Tensor den, bool with_omega, "
    f"{_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "favor_state(Tensor q, Tensor k, Tensor v, Tensor? omega, Tensor? state, str feature_map, float kernel_epsilon) "
    "-> (Tensor, Tensor)"
)


def _array(tensor: torch.Tensor) -> Any:
    """A NumPy view; a copy where steps or alignment are not what the kernels walk."""
    tensor = tensor.detach().resolve_neg()
    if tensor.numel() == 0 or tensor.stride(-1) != 1 or tensor.data_ptr() % tensor.element_size():
        tensor = tensor.contiguous()
        if tensor.numel() and tensor.data_ptr() % tensor.element_size():
            tensor = tensor.clone()
    return tensor.numpy()


def contiguous_array(tensor: torch.Tensor, dtype: torch.dtype) -> Any:
    """A contiguous, aligned NumPy view, or a copy."""
    return _array(tensor.detach().to(dtype).contiguous())


def _options(
    feature_map: str,
    causal: bool,
    kernel_epsilon: float,
    cu_seqlens: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
) -> dict[str, Any]:
    borders = None if cu_seqlens is None else contiguous_array(cu_seqlens, torch.int64)
    mask = None if key_padding_mask is None else contiguous_array(key_padding_mask, torch.bool).view("uint8")
    if borders is not None:
        _arguments.check_segments(borders.shape, "int64", None, 0)
    return {
        "feature_map": feature_map,
        "causal": causal,
        "kernel_epsilon": kernel_epsilon,
        "cu_seqlens": borders,
        "key_padding_mask": mask,
        "isa": _arguments.isa(),
        "num_threads": _arguments.num_threads(torch.get_num_threads()),
    }


def _omega_array(omega: torch.Tensor | None) -> Any:
    return None if omega is None else contiguous_array(omega, torch.float64)


@tells_memory
def _favor(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, omega: torch.Tensor | None, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, q_len, _ = q.shape
    out = torch.empty(batch, heads, q_len, v.shape[3], dtype=q.dtype)
    den = torch.empty(batch, heads, q_len, 2, dtype=q.dtype)
    x, y, z = (_array(tensor) for tensor in (q, k, v))
    _native.favor_forward(x, y, z, _omega_array(omega), out.numpy(), den.numpy(), **_options(*options))
    return out, den


def _favor_fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, omega: torch.Tensor | None, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, q_len, _ = q.shape
    return q.new_empty(batch, heads, q_len, v.shape[3]), q.new_empty(batch, heads, q_len, 2)


@tells_memory
def _favor_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    out: torch.Tensor,
    den: torch.Tensor,
    with_omega: bool,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    dq, dk, dv = (torch.empty(*x.shape, dtype=x.dtype) for x in (q, k, v))
    domega = torch.empty(*(omega.shape if with_omega and omega is not None else (0,)), dtype=torch.float64)
    _native.favor_backward(
        _array(q),
        _array(k),
        _array(v),
        _omega_array(omega),
        _array(out),
        contiguous_array(den, q.dtype),
        _array(grad),
        dq.numpy(),
        dk.numpy(),
        dv.numpy(),
        domega.numpy() if with_omega else None,
        **_options(*options),
    )
    return dq, dk, dv, domega


def _favor_backward_fake(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    out: torch.Tensor,
    den: torch.Tensor,
    with_omega: bool,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = omega.shape if with_omega and omega is not None else (0,)
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    return dq, dk, dv, q.new_empty(shape, dtype=torch.float64)


@tells_memory
def _favor_state(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None,
    feature_map: str,
    kernel_epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, q_len, _ = q.shape
    features = reference.feature_dim(feature_map, q.shape[3] if omega is None else omega.shape[-2])
    out = torch.empty(batch, heads, q_len, v.shape[3], dtype=q.dtype)
    den = torch.empty(batch, heads, q_len, 2, dtype=q.dtype)
    after = torch.empty(batch, heads, features, v.shape[3] + 2, dtype=q.dtype)
    options = _options(feature_map, True, kernel_epsilon, None, None)
    _native.favor_forward(
        _array(q),
        _array(k),
        _array(v),
        _omega_array(omega),
        out.numpy(),
        den.numpy(),
        **options,
        state_in=None if state is None else contiguous_array(state, q.dtype),
        state_out=after.numpy(),
    )
    return out, after


def _favor_state_fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None,
    feature_map: str,
    kernel_epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, q_len, _ = q.shape
    features = reference.feature_dim(feature_map, q.shape[3] if omega is None else omega.shape[-2])
    return q.new_empty(batch, heads, q_len, v.shape[3]), q.new_empty(batch, heads, features, v.shape[3] + 2)


_library.impl("favor", _favor, "CPU")
_library.impl("favor_backward", _favor_backward, "CPU")
_library.impl("favor_state", _favor_state, "CPU")
library.register_fake("protperf::favor", _favor_fake, lib=_library)
library.register_fake("protperf::favor_backward", _favor_backward_fake, lib=_library)
library.register_fake("protperf::favor_state", _favor_state_fake, lib=_library)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, omega, feature_map, causal, kernel_epsilon, cu_seqlens, key_padding_mask = inputs
    out, den = output
    ctx.mark_non_differentiable(den)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, omega, out, den, cu_seqlens, key_padding_mask)
    ctx.options = (feature_map, causal, kernel_epsilon)


@tells_memory
def _gradient(ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 9
    q, k, v, omega, out, den, cu_seqlens, key_padding_mask = ctx.saved_tensors
    with_omega = omega is not None and ctx.needs_input_grad[3]
    feature_map, causal, kernel_epsilon = ctx.options
    dq, dk, dv, domega = torch.ops.protperf.favor_backward(
        grad, q, k, v, omega, out, den, with_omega, feature_map, causal, kernel_epsilon, cu_seqlens, key_padding_mask
    )
    return dq, dk, dv, domega.to(omega.dtype) if with_omega else None, None, None, None, None, None


def _no_second_gradient(ctx: Any, *_: Any) -> tuple[Any, ...]:
    raise RuntimeError(
        "protperf::favor is not twice differentiable; use protperf.torch.reference.favor_attention for second gradients"
    )


library.register_autograd("protperf::favor", _gradient, setup_context=_setup, lib=_library)
library.register_autograd(
    "protperf::favor_backward", _no_second_gradient, setup_context=lambda ctx, inputs, output: None, lib=_library
)
