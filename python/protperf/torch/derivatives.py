"""Gradients of the operators.

First gradients are operators themselves. Second ones go through the chunked form, which is made of differentiable
operations and so can be differentiated any number of times. Forward mode has no rule here, so a tangent is refused:
torch would drop it and answer that the output does not depend on the input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import library
from torch.autograd import forward_ad

from protperf.torch import chunked
from protperf.torch.inputs import Options
from protperf.torch.memory import translate_out_of_memory

__all__ = ["define", "define_gradient", "second_gradient"]


def _first_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    """For `favor` and `favor_state`: tensors are kept as they were given, 16-bit ones too."""
    *tensors, feature_map, causal, kernel_epsilon, cu_seqlens, key_padding_mask, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output, cu_seqlens, key_padding_mask)
    ctx.options = (feature_map, causal, kernel_epsilon)


def _favor_gradient(ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    q, k, v, omega, out, den, *masks = ctx.saved_tensors
    with_omega = omega is not None and ctx.needs_input_grad[4]
    dq, dk, dv, domega = torch.ops.protperf.favor_backward(
        grad, q, k, v, omega, out, den, with_omega, *ctx.options, *masks, ctx.backend
    )
    return dq, dk, dv, domega if with_omega else None, *(None,) * 6


def _favor_state_gradient(
    ctx: Any, grad: torch.Tensor | None, _: torch.Tensor | None, grad_state: torch.Tensor | None
) -> tuple[Any, ...]:
    if grad is None and grad_state is None:
        return (None,) * 11
    q, k, v, omega, state, out, den, after, *masks = ctx.saved_tensors
    with_omega = omega is not None and ctx.needs_input_grad[4]
    dq, dk, dv, domega, dstate = torch.ops.protperf.favor_state_backward(
        grad, grad_state, q, k, v, omega, state, out, den, after, with_omega, *ctx.options, *masks, ctx.backend
    )
    return dq, dk, dv, domega if with_omega else None, None if state is None else dstate, *(None,) * 6


def _second_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    """For `favor_backward` and `favor_state_backward`."""
    *tensors, with_omega, feature_map, causal, kernel_epsilon, cu_seqlens, key_padding_mask, _ = inputs
    ctx.save_for_backward(*tensors, cu_seqlens, key_padding_mask)
    ctx.with_omega, ctx.options = with_omega, (feature_map, causal, kernel_epsilon)


def _favor_second_gradient(ctx: Any, dq: Any, dk: Any, dv: Any, domega: Any) -> tuple[Any, ...]:
    grad, q, k, v, omega, _, _, *masks = ctx.saved_tensors
    found = second_gradient(
        _attention(Options(*ctx.options, *masks)),
        {"out": grad},
        {"q": q, "k": k, "v": v, "omega": omega},
        {"q": dq, "k": dk, "v": dv, "omega": domega if ctx.with_omega else None},
    )
    return tuple(found.get(name) for name in ("out", "q", "k", "v", "omega")) + (None,) * 9


def _favor_state_second_gradient(ctx: Any, dq: Any, dk: Any, dv: Any, domega: Any, dstate: Any) -> tuple[Any, ...]:
    grad, grad_state, q, k, v, omega, state, _, _, _, *masks = ctx.saved_tensors
    found = second_gradient(
        _attention(Options(*ctx.options, *masks)),
        {"out": grad, "after": grad_state},
        {"q": q, "k": k, "v": v, "omega": omega, "state": state},
        {"q": dq, "k": dk, "v": dv, "omega": domega if ctx.with_omega else None, "state": dstate},
    )
    return tuple(found.get(name) for name in ("out", "after", "q", "k", "v", "omega", "state")) + (None,) * 10


_Optional = Mapping[str, torch.Tensor | None]
_Present = dict[str, torch.Tensor]


def _attention(options: Options) -> Callable[[_Present], _Present]:
    """Outputs by name from inputs by name."""

    def attention(inputs: _Present) -> _Present:
        q, k, v = (inputs[name] for name in "qkv")
        out, after = chunked.favor_attention(q, k, v, inputs.get("omega"), inputs.get("state"), options=options)
        return {"out": out, "after": after}

    return attention


def second_gradient(
    attention: Callable[[_Present], _Present], grads: _Optional, inputs: _Optional, cotangents: _Optional
) -> _Present:
    """Gradients of `grads` and `inputs` through the first gradients of `inputs`, whose own are `cotangents`.

    out and den, which the operators are given too, are functions of the inputs: all is computed again from those by
    `attention`, so that the whole derivative is here, and is recorded in turn where a third one is wanted.
    """

    def first_gradients(grads: _Present, inputs: _Present) -> _Present:
        outputs, pull_back, *_ = torch.func.vjp(attention, inputs)
        (found,) = pull_back(_or_zeros(grads, outputs))
        return found

    first, pull_back, *_ = torch.func.vjp(first_gradients, _present(grads), _present(inputs))
    of_grads, of_inputs = pull_back(_or_zeros(cotangents, first))
    return {**of_grads, **of_inputs}


def _present(tensors: _Optional) -> _Present:
    return {name: x for name, x in tensors.items() if x is not None}


def _or_zeros(cotangents: _Optional, values: _Present) -> _Present:
    present = _present(cotangents)
    return {name: present[name] if name in present else torch.zeros_like(y) for name, y in values.items()}


def _tangent(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and forward_ad.unpack_dual(x).tangent is not None


def define(to: library.Library) -> None:
    """Registers the gradients of all operators."""
    define_gradient(to, "favor", _first_setup, _favor_gradient)
    define_gradient(to, "favor_backward", _second_setup, _favor_second_gradient)
    define_gradient(to, "favor_state", _first_setup, _favor_state_gradient)
    define_gradient(to, "favor_state_backward", _second_setup, _favor_state_second_gradient)


def define_gradient(
    to: library.Library,
    name: str,
    setup: Callable[[Any, tuple[Any, ...], tuple[torch.Tensor, ...]], None],
    rule: Callable[..., tuple[Any, ...]],
    other_form: str = "call protperf.torch.favor_attention or favor_attention_with_state, which have one",
) -> None:
    """Registers the gradient of an operator; `other_form` is what has a forward-mode derivative.

    `torch.library.register_autograd` would do, but for forward mode: it passes a tensor with a tangent on to the
    kernel, which drops the tangent without a word.
    """
    operator = getattr(torch.ops.protperf, name).default
    returns_list = len(operator._schema.returns) == 1
    translated = translate_out_of_memory(rule)

    def below(keyset: Any, args: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            found: tuple[torch.Tensor, ...] = operator.redispatch(keyset & torch._C._after_autograd_keyset, *args)
            return found

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
            # An operator may return a list of tensors, in which autograd would not look for any.
            output = tuple(below(keyset, args))
            setup(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return None, *translated(ctx, *grads)

    Differentiable.__name__ = f"protperf_{name}"

    def differentiable(keyset: Any, *args: Any) -> Sequence[torch.Tensor]:
        if forward_ad._current_level >= 0 and any(map(_tangent, args)):
            raise RuntimeError(f"torch.ops.protperf.{name} has no forward-mode derivative; {other_form}")
        if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in args):
            found: tuple[torch.Tensor, ...] = Differentiable.apply(keyset, *args)
            return list(found) if returns_list else found
        return below(keyset, args)

    to.impl(name, _opaque(differentiable), "Autograd", with_keyset=True)


def _opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hides the Python that computes an operator from the compiler, to which it is one step.

    The compiler is not loaded for this, which would take seconds: where nobody has loaded it, it cannot look.
    """
    hidden: Callable[..., Any] | None = None

    def opaque(*args: Any) -> Any:
        nonlocal hidden
        if hidden is None:
            if "torch._dynamo" not in sys.modules:
                return function(*args)
            hidden = torch.compiler.disable(function)
        return hidden(*args)

    return opaque
