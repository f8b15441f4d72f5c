"""The operators `torch.ops.protperf.log_linear` and `log_linear_backward`: maps that are given by their parameters.

Built as those of maps with a name are (`ops.py`, `kernels.py`, `derivatives.py`), and apart from them, because their
arguments differ: five parameters, of which four may be missing, in omega's place. One operator serves calls with and
without a state; a final state that was not asked for is empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import library

from protperf import _native
from protperf.torch import chunked, chunked_backward, kernels
from protperf.torch.autocast import without_autocast
from protperf.torch.derivatives import define_gradient, second_gradient
from protperf.torch.inputs import Options, computed_type
from protperf.torch.log_linear import Parameters
from protperf.torch.memory import translate_out_of_memory

__all__ = ["options_of"]

_NAMES = Parameters._fields
_OPTIONS = "bool causal, Tensor? cu_seqlens, Tensor? key_padding_mask, str backend"
_INPUTS = f"Tensor q, Tensor k, Tensor v, Tensor {', Tensor? '.join(_NAMES)}, Tensor? state"
_library = library.Library("protperf", "FRAGMENT")
_library.define(f"log_linear({_INPUTS}, bool with_state, {_OPTIONS}) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"log_linear_backward(Tensor? grad, Tensor? grad_state, {_INPUTS}, Tensor out, Tensor den, Tensor after, "
    f"bool with_parameters, {_OPTIONS}) -> ({', '.join(['Tensor'] * 9)})"
)

_Tensors = tuple[torch.Tensor, ...]
_Optional = torch.Tensor | None


def options_of(causal: bool, cu_seqlens: _Optional, key_padding_mask: _Optional, backend: str = "auto") -> Options:
    """Options as the chunked form takes them, where the name of the map says nothing."""
    return Options("", causal, 0.0, cu_seqlens, key_padding_mask, backend)


@translate_out_of_memory
def _chunked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> _Tensors:
    parameters, (state, with_state, *options) = Parameters(*rest[:5]), rest[5:]
    with without_autocast(q.device):
        done = chunked.forward(q, k, v, parameters, state, options_of(*options), in_place=True)
    return done.out, done.den, done.state.contiguous() if with_state else done.den.new_empty(0)


@translate_out_of_memory
def _chunked_backward(grad: _Optional, grad_state: _Optional, *rest: Any) -> _Tensors:
    q, k, v, *parameters = rest[:8]
    state, out, den, _, with_parameters, *options = rest[8:]
    if grad is None:
        grad = out.new_zeros(()).expand(out.shape)
    inputs = (q, k, v, Parameters(*parameters), state)
    with without_autocast(q.device):
        found = chunked_backward.backward(
            grad, grad_state, inputs, out, den, options_of(*options), with_parameters=with_parameters
        )
    dparameters = found.parameters or (None,) * 5
    dstate = den.new_empty(0) if state is None else found.state
    return found.q, found.k, found.v, *(q.new_empty(0) if x is None else x for x in dparameters), dstate


@translate_out_of_memory
def _native_forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> _Tensors:
    if kernels.chunked_is_chosen(rest[-1]):
        return _chunked(q, k, v, *rest)
    parameters, (state, with_state, *options) = Parameters(*rest[:5]), rest[5:]
    out, den, after = _forward_fake(q, k, v, *rest)
    _native.favor_forward(
        *kernels._inputs(q, k, v, None),
        kernels.array(out),
        den.numpy(),
        **_options(q, parameters, options),
        state_in=None if state is None else kernels.contiguous_array(state, den.dtype),
        state_out=after.numpy() if with_state else None,
    )
    return out, den, after


@translate_out_of_memory
def _native_backward(grad: _Optional, grad_state: _Optional, *rest: Any) -> _Tensors:
    if kernels.chunked_is_chosen(rest[-1]):
        return _chunked_backward(grad, grad_state, *rest)
    q, k, v, *parameters = rest[:8]
    state, out, den, after, with_parameters, *options = rest[8:]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    dstate = torch.empty(0 if state is None else state.shape, dtype=den.dtype)
    wanted = [with_parameters and x is not None for x in parameters]
    # The native module sums these in float64.
    wide = [
        torch.empty(x.shape if is_wanted else 0, dtype=torch.float64)
        for x, is_wanted in zip(parameters, wanted, strict=True)
    ]
    buffers = tuple(x.numpy() if is_wanted else None for x, is_wanted in zip(wide, wanted, strict=True))
    _native.favor_backward(
        *kernels._inputs(q, k, v, None),
        kernels.array(out),
        kernels.contiguous_array(den, den.dtype),
        kernels.array(torch.zeros_like(out) if grad is None else grad),
        kernels.array(dq),
        kernels.array(dk),
        kernels.array(dv),
        None,
        **_options(q, Parameters(*parameters), options),
        dparameters=buffers if with_parameters else None,  # type: ignore[arg-type]
        state_in=None if state is None else kernels.contiguous_array(state, den.dtype),
        state_out=None if grad_state is None else kernels.contiguous_array(after, den.dtype),
        grad_state=None if grad_state is None else kernels.contiguous_array(grad_state, den.dtype),
        dstate_in=None if state is None else dstate.numpy(),
    )
    narrow = [x.to(q.dtype if given is None else given.dtype) for x, given in zip(wide, parameters, strict=True)]
    return dq, dk, dv, *narrow, dstate


def _options(q: torch.Tensor, parameters: Parameters, options: Any) -> dict[str, Any]:
    """Keywords of the native module."""
    causal, *masks = options
    shared = kernels._options(q, "positive", causal, 0.0, *masks)
    fields = tuple(None if x is None else kernels.contiguous_array(x, torch.float64) for x in parameters)
    return {**shared, "kernel_epsilon": None, "parameters": fields}


def _forward_fake(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: Any) -> _Tensors:
    with_state, _, cu_seqlens, _, _ = rest[6:]
    out = q.new_empty(*q.shape[:3], v.shape[3])
    den = q.new_empty(*q.shape[:3], 2, dtype=computed_type(q.dtype))
    num_sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    state = (num_sequences, q.shape[1], rest[0].shape[-2], v.shape[3] + 2)
    return out, den, den.new_empty(state if with_state else 0)


def _backward_fake(grad: _Optional, grad_state: _Optional, *rest: Any) -> _Tensors:
    q, k, v, *parameters = rest[:8]
    state, _, den, _, with_parameters = rest[8:13]
    dinputs = [x.new_empty(x.shape) for x in (q, k, v)]
    found = [q.new_empty(0) if x is None else x.new_empty(x.shape if with_parameters else 0) for x in parameters]
    return *dinputs, *found, den.new_empty(0 if state is None else state.shape)


def _first_setup(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
    *tensors, with_state, causal, cu_seqlens, key_padding_mask, ctx.backend = inputs
    ctx.mark_non_differentiable(*(output[1:2] if with_state else output[1:]))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output, cu_seqlens, key_padding_mask)
    ctx.causal = causal


def _first_gradient(ctx: Any, grad: _Optional, _: _Optional, grad_state: _Optional) -> tuple[Any, ...]:
    if grad is None and grad_state is None:
        return (None,) * 14
    *tensors, cu_seqlens, key_padding_mask = ctx.saved_tensors
    # The first argument is what the dispatcher needs; the five behind q, k and v are the parameters.
    with_parameters = any(ctx.needs_input_grad[4:9])
    found = torch.ops.protperf.log_linear_backward(
        grad, grad_state, *tensors, with_parameters, ctx.causal, cu_seqlens, key_padding_mask, ctx.backend
    )
    is_there = [True] * 3 + [with_parameters and x is not None for x in tensors[3:8]] + [tensors[8] is not None]
    return *(x if there else None for x, there in zip(found, is_there, strict=True)), *(None,) * 5


def _second_setup(ctx: Any, inputs: tuple[Any, ...], output: _Tensors) -> None:
    *tensors, with_parameters, causal, cu_seqlens, key_padding_mask, _ = inputs
    ctx.save_for_backward(*tensors, cu_seqlens, key_padding_mask)
    ctx.with_parameters, ctx.causal = with_parameters, causal


def _second_gradient(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
    grad, grad_state, *inputs = ctx.saved_tensors[:11]
    cu_seqlens, key_padding_mask = ctx.saved_tensors[14:]
    names = ("q", "k", "v", *_NAMES, "state")
    arriving = dict(zip(names, cotangents, strict=True))
    options = options_of(ctx.causal, cu_seqlens, key_padding_mask)

    def attention(present: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        q, k, v = (present[name] for name in "qkv")
        parameters = Parameters(*(present.get(name) for name in _NAMES))  # type: ignore[arg-type]
        out, after = chunked.favor_attention(q, k, v, parameters, present.get("state"), options=options)
        return {"out": out, "after": after}

    found = second_gradient(
        attention,
        {"out": grad, "after": grad_state},
        dict(zip(names, inputs, strict=True)),
        {name: None if name in _NAMES and not ctx.with_parameters else x for name, x in arriving.items()},
    )
    return *(found.get(name) for name in ("out", "after", *names)), *(None,) * 8


_library.impl("log_linear", _native_forward, "CPU")
_library.impl("log_linear_backward", _native_backward, "CPU")
_library.impl("log_linear", _chunked, "CompositeExplicitAutograd")
_library.impl("log_linear_backward", _chunked_backward, "CompositeExplicitAutograd")
library.register_fake("protperf::log_linear", _forward_fake, lib=_library)
library.register_fake("protperf::log_linear_backward", _backward_fake, lib=_library)
define_gradient(_library, "log_linear", _first_setup, _first_gradient)
define_gradient(_library, "log_linear_backward", _second_setup, _second_gradient)
