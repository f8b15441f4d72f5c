"""What computes each operator: the native module on a CPU, the chunked form in plain torch everywhere else.

A kernel sees tensors below autograd and checks nothing that `functional.py` has checked. On a CPU the environment
variable `PROTPERF_TORCH_FORM=chunked` makes the chunked form what `auto` chooses: what other devices run can be tested
without one.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from protperf import _arguments, _native
from protperf._backends import log_choice
from protperf._feature_maps import feature_dim
from protperf.errors import ConfigError
from protperf.threads import num_threads
from protperf.torch import chunked, chunked_backward
from protperf.torch.autocast import without_autocast
from protperf.torch.inputs import Options, computed_type
from protperf.torch.memory import translate_out_of_memory

__all__ = [
    "chunked_favor",
    "chunked_favor_backward",
    "chunked_favor_state",
    "chunked_favor_state_backward",
    "native_favor",
    "native_favor_backward",
    "native_favor_state",
    "native_favor_state_backward",
]

_FORMS = ("native", "chunked")
# Types that NumPy lacks or that the native module takes as bits.
_STORED = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def chunked_is_chosen(backend: str) -> bool:
    """Whether `PROTPERF_TORCH_FORM`, read at every call, asks for the chunked form in place of `auto`."""
    form = os.environ.get("PROTPERF_TORCH_FORM") or "native"
    if form not in _FORMS:
        raise ConfigError(f"PROTPERF_TORCH_FORM is {form!r}; choose one of {', '.join(_FORMS)}")
    return form == "chunked" and backend == "auto"


@translate_out_of_memory
def chunked_favor(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, omega: torch.Tensor | None, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator `favor` in plain torch."""
    with without_autocast(q.device):
        done = chunked.forward(q, k, v, omega, None, Options(*options), in_place=True)
    return done.out, done.den


@translate_out_of_memory
def chunked_favor_backward(
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
    """The operator `favor_backward` in plain torch."""
    return chunked_favor_state_backward(grad, None, q, k, v, omega, None, out, den, None, with_omega, *options)[:4]


@translate_out_of_memory
def chunked_favor_state(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator `favor_state` in plain torch."""
    with without_autocast(q.device):
        done = chunked.forward(q, k, v, omega, state, Options(*options), in_place=True)
    return done.out, done.den, done.state.contiguous()


@translate_out_of_memory
def chunked_favor_state_backward(
    grad: torch.Tensor | None,
    grad_state: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None,
    out: torch.Tensor,
    den: torch.Tensor,
    _after: torch.Tensor | None,
    with_omega: bool,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator `favor_state_backward` in plain torch."""
    if grad is None:
        grad = out.new_zeros(()).expand(out.shape)
    with without_autocast(q.device):
        found = chunked_backward.backward(
            grad, grad_state, (q, k, v, omega, state), out, den, Options(*options), with_parameters=with_omega
        )
    (domega,) = found.parameters or (None,)
    domega = q.new_empty(0) if domega is None else domega
    dstate = den.new_empty(0) if state is None else found.state
    return found.q, found.k, found.v, domega, dstate


@translate_out_of_memory
def native_favor(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, omega: torch.Tensor | None, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """The operator `favor` by the native kernel."""
    if chunked_is_chosen(options[-1]):
        return chunked_favor(q, k, v, omega, *options)
    out, den = _output(q, v)
    _native.favor_forward(*_inputs(q, k, v, omega), _memory(out), den.numpy(), **_options(q, *options))
    return out, den


@translate_out_of_memory
def native_favor_backward(
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
    """The operator `favor_backward` by the native kernel."""
    if chunked_is_chosen(options[-1]):
        return chunked_favor_backward(grad, q, k, v, omega, out, den, with_omega, *options)
    dq, dk, dv, domega = _gradients(q, k, v, omega, with_omega)
    _native.favor_backward(
        *_inputs(q, k, v, omega),
        array(out),
        contiguous_array(den, den.dtype),
        array(grad),
        _memory(dq),
        _memory(dk),
        _memory(dv),
        domega.numpy() if with_omega else None,
        **_options(q, *options),
    )
    return dq, dk, dv, domega.to(q.dtype if omega is None else omega.dtype)


@translate_out_of_memory
def native_favor_state(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator `favor_state` by the native kernel."""
    if chunked_is_chosen(options[-1]):
        return chunked_favor_state(q, k, v, omega, state, *options)
    out, den = _output(q, v)
    given = Options(*options)
    features = feature_dim(given.feature_map, q.shape[3] if omega is None else omega.shape[-2])
    num_sequences = q.shape[0] if given.cu_seqlens is None else len(given.cu_seqlens) - 1
    after = torch.empty(num_sequences, q.shape[1], features, v.shape[3] + 2, dtype=den.dtype)
    _native.favor_forward(
        *_inputs(q, k, v, omega),
        _memory(out),
        den.numpy(),
        **_options(q, *options),
        state_in=None if state is None else contiguous_array(state, den.dtype),
        state_out=after.numpy(),
    )
    return out, den, after


@translate_out_of_memory
def native_favor_state_backward(
    grad: torch.Tensor | None,
    grad_state: torch.Tensor | None,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    state: torch.Tensor | None,
    out: torch.Tensor,
    den: torch.Tensor,
    after: torch.Tensor,
    with_omega: bool,
    *options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The operator `favor_state_backward` by the native kernel."""
    arguments = (grad, grad_state, q, k, v, omega, state, out, den, after, with_omega)
    if chunked_is_chosen(options[-1]):
        return chunked_favor_state_backward(*arguments, *options)
    dq, dk, dv, domega = _gradients(q, k, v, omega, with_omega)
    dstate = torch.empty(0 if state is None else state.shape, dtype=den.dtype)
    _native.favor_backward(
        *_inputs(q, k, v, omega),
        array(out),
        contiguous_array(den, den.dtype),
        array(torch.zeros_like(out) if grad is None else grad),
        _memory(dq),
        _memory(dk),
        _memory(dv),
        domega.numpy() if with_omega else None,
        **_options(q, *options),
        state_in=None if state is None else contiguous_array(state, den.dtype),
        state_out=contiguous_array(after, den.dtype),
        grad_state=None if grad_state is None else contiguous_array(grad_state, den.dtype),
        dstate_in=None if state is None else dstate.numpy(),
    )
    return dq, dk, dv, domega.to(q.dtype if omega is None else omega.dtype), dstate


def _output(q: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for the output, in q's type, and for the denominators, in that of the computation."""
    out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype)
    return out, torch.empty(*q.shape[:3], 2, dtype=computed_type(q.dtype))


def _gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, omega: torch.Tensor | None, with_omega: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Memory for the gradients; that of omega is always float64."""
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv, torch.empty(omega.shape if with_omega and omega is not None else 0, dtype=torch.float64)


def _inputs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, omega: torch.Tensor | None) -> tuple[Any, Any, Any, Any]:
    return array(q), array(k), array(v), None if omega is None else contiguous_array(omega, torch.float64)


def array(tensor: torch.Tensor) -> Any:
    """A NumPy view, of bits where NumPy lacks the type; a copy where steps or alignment are not what kernels walk."""
    view = _memory(tensor)
    # Asked of the view: an attribute of a tensor takes several times as long.
    if view.size and view.strides[-1] == view.itemsize and view.flags.aligned:
        return view
    adjacent = tensor.contiguous()
    return _memory(adjacent if _memory(adjacent).flags.aligned else adjacent.clone())


def _memory(tensor: torch.Tensor) -> Any:
    """A NumPy view of a tensor's memory, of bits where NumPy lacks the type; a copy of a lazily negated one."""
    if tensor.dtype in _STORED:
        tensor = tensor.detach().resolve_neg().view(torch.uint16)
    return tensor.numpy(force=True)


def contiguous_array(tensor: torch.Tensor, dtype: torch.dtype) -> Any:
    """A contiguous, aligned NumPy view, or a copy."""
    if tensor.dtype != dtype:
        tensor = tensor.detach().to(dtype)
    return array(tensor.contiguous())


def _options(
    q: torch.Tensor,
    feature_map: str,
    causal: bool,
    kernel_epsilon: float,
    cu_seqlens: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
    backend: str,
) -> dict[str, Any]:
    log_choice(backend, _STORED.get(q.dtype))
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
        "stored": _STORED.get(q.dtype),
        "backend": backend,
        "isa": _arguments.isa(),
        "num_threads": num_threads(torch.get_num_threads()),
    }
