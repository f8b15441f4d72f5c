"""A pre-norm Transformer block with FAVOR+ or exact attention as one operator, and the head of a training as another.

What `protperf.lm` composes of torch's operations in a dozen passes over memory is one native call here, forward and
backward, on a CPU in float32 or float64. It has first derivatives; for second ones, forward mode, `torch.func` and
other devices there is the composed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import library
from torch.autograd import forward_ad

from protperf import _arguments, _native
from protperf.errors import ConfigError
from protperf.threads import num_threads
from protperf.torch.derivatives import define_gradient
from protperf.torch.kernels import array, contiguous_array
from protperf.torch.memory import translate_out_of_memory

__all__ = ["BlockWeights", "can_run", "token_loss", "transformer_block"]

EXACT = "exact"
"""The name of softmax attention where a feature map is named otherwise."""

_TENSORS = (
    "Tensor hidden, Tensor attention_norm, Tensor qkv, Tensor log_temperature, Tensor? omega, Tensor out, "
    "Tensor ffn_norm, Tensor gate_up, Tensor down, Tensor cosines, Tensor sines, Tensor cu_seqlens, Tensor key"
)
_OPTIONS = "int num_heads, str attention, bool causal, float dropout, str precision"
_COMPOSED = "compose the network in torch (engine='torch')"
"""What has the derivatives that these operators have not."""
_NUM_WEIGHTS = 8
_NUM_OPTIONS = 6
"""Arguments of `block` after its tensors."""
_library = library.Library("protperf", "FRAGMENT")
_library.define(f"block({_TENSORS}, {_OPTIONS}, bool is_traced) -> Tensor[]")
_library.define(f"block_backward(Tensor grad, {_TENSORS}, Tensor[] trace, {_OPTIONS}) -> Tensor[]")
_library.define(
    "token_loss(Tensor hidden, Tensor norm, Tensor embedding, Tensor positions, Tensor targets, float weight, "
    "str precision, bool with_gradients) -> Tensor[]"
)


class BlockWeights(NamedTuple):
    """The tensors of a block.

    Shapes: attention_norm and ffn_norm [C]; qkv [3HD,C]; log_temperature [H]; omega [H,M,D], None with exact attention;
    out [C,HD]; gate_up [2F,C]; down [C,F].
    """

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    log_temperature: torch.Tensor
    omega: torch.Tensor | None
    out: torch.Tensor
    ffn_norm: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


def can_run(hidden: torch.Tensor, weights: Sequence[torch.Tensor | None]) -> bool:
    """Whether the operators of this file compute what is asked for: the device, the types and the derivatives."""
    if hidden.device.type != "cpu" or hidden.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_autocast_enabled("cpu") or forward_ad._current_level >= 0:
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    return all(x is None or (x.device == hidden.device and x.dtype == hidden.dtype) for x in weights)


@translate_out_of_memory
def transformer_block(
    hidden: torch.Tensor,
    weights: BlockWeights,
    rotary: tuple[torch.Tensor, torch.Tensor],
    cu_seqlens: torch.Tensor,
    *,
    num_heads: int,
    attention: str,
    causal: bool,
    dropout: float = 0.0,
    precision: str = "f32",
) -> torch.Tensor:
    """The residual stream [N,C] after a block; differentiable once in hidden and in all weights but omega.

    Args:
        hidden: [N,C], the tokens of packed sequences.
        rotary: cosines and sines of the angles of each token [N,D/2].
        cu_seqlens: borders of the sequences [num_sequences+1], int64.
        attention: a feature map, or `exact`.
        dropout: probability; which numbers are dropped is drawn from torch's generator, so that a checkpointed block
            drops the same ones again.
        precision: `bf16` rounds the operands of the matrix products, forward and backward, to bf16 and sums in float32;
            norms, attention and the residual stream stay in float32. `f32` rounds nothing.

    Raises:
        ShapeError, ConfigError: sizes that do not agree, a map or a precision that does not exist, bf16 in float64;
        omega or angles that need a gradient, or a transform of `torch.func`.
    """
    _refuse_transforms("transformer_block")
    for name, fixed in (("omega", weights.omega), ("rotary", rotary[0]), ("rotary", rotary[1])):
        if fixed is not None and fixed.requires_grad and torch.is_grad_enabled():
            raise ConfigError(f"{name} needs a gradient, and transformer_block has none; detach it, or {_COMPOSED}")
    # A tensor, because a compiled graph would freeze a number.
    key = torch.randint(2**63 - 1, ()) if dropout > 0 else torch.zeros((), dtype=torch.int64)
    is_traced = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, *weights))
    found: list[torch.Tensor] = torch.ops.protperf.block(
        hidden, *weights, *rotary, cu_seqlens, key, num_heads, attention, causal, dropout, precision, is_traced
    )
    return found[0]


@translate_out_of_memory
def token_loss(
    hidden: torch.Tensor,
    norm: torch.Tensor,
    embedding: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor,
    weight: float,
    precision: str = "f32",
) -> torch.Tensor:
    """`weight` times the sum of `-log p(target)`, nats: final norm, tied logits and cross-entropy.

    Shapes: hidden [N,C], norm [C], embedding [V,C], positions and targets int64 [num_targets], positions increasing.
    Differentiable once in hidden, norm and embedding. `precision` is that of the products, as in `transformer_block`.

    Raises:
        ShapeError, ConfigError: sizes that do not agree, a position, a target or a precision that does not exist; a
        transform of `torch.func`.
    """
    _refuse_transforms("token_loss")
    with_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, norm, embedding))
    found: list[torch.Tensor] = torch.ops.protperf.token_loss(
        hidden, norm, embedding, positions, targets, weight, precision, with_gradients
    )
    return found[0]


def _refuse_transforms(name: str) -> None:
    """Refuse to be a part of what `torch.func` transforms, where operators have no rule."""
    if torch._C._are_functorch_transforms_active():
        raise ConfigError(f"{name} cannot be transformed by torch.func; {_COMPOSED}")


def _trace_sizes(hidden: torch.Tensor, qkv: torch.Tensor, down: torch.Tensor, num_heads: int) -> list[int]:
    """Elements per token of each buffer that the backward pass reads."""
    width = hidden.shape[1]
    head_dim = qkv.shape[0] // (3 * num_heads)
    return list(_native.block_trace_sizes(width, num_heads, head_dim, down.shape[1]))


def _block(
    hidden: torch.Tensor,
    *rest: Any,
) -> list[torch.Tensor]:
    """The operator `block`: the output, and the trace where it is asked for."""
    *tensors, num_heads, attention, causal, dropout, precision, is_traced = rest
    *weights, cosines, sines, cu_seqlens, key = tensors
    output = hidden.detach().clone(memory_format=torch.contiguous_format)
    trace: list[torch.Tensor] = []
    if is_traced:
        sizes = _trace_sizes(hidden, weights[1], weights[7], num_heads)
        trace = [hidden.new_empty(len(hidden) * size) for size in sizes]
    _native.block_forward(
        output.numpy(),
        _weight_arrays(weights, hidden.dtype),
        _place_arrays(cosines, sines, cu_seqlens, hidden.dtype),
        tuple(x.numpy() for x in trace) if is_traced else None,
        **_choice(num_heads, attention, causal, dropout, precision, key),
    )
    return [output, *trace]


def _block_backward(grad: torch.Tensor, hidden: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
    """The operator `block_backward`: gradients of hidden and of the weights but omega, in their order."""
    *tensors, trace, num_heads, attention, causal, dropout, precision = rest
    *weights, cosines, sines, cu_seqlens, key = tensors
    arriving = grad.detach().clone(memory_format=torch.contiguous_format)
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in _but_omega(weights)]
    _native.block_backward(
        arriving.numpy(),
        contiguous_array(hidden, hidden.dtype),
        _weight_arrays(weights, hidden.dtype),
        tuple(x.numpy() for x in gradients),
        _place_arrays(cosines, sines, cu_seqlens, hidden.dtype),
        tuple(array(x) for x in trace),
        **_choice(num_heads, attention, causal, dropout, precision, key),
    )
    return [arriving, *gradients]


def _token_loss(
    hidden: torch.Tensor,
    norm: torch.Tensor,
    embedding: torch.Tensor,
    positions: torch.Tensor,
    targets: torch.Tensor,
    weight: float,
    precision: str,
    with_gradients: bool,
) -> list[torch.Tensor]:
    """The operator `token_loss`: the loss, and the gradients of its arguments where they are asked for."""
    tensors = (hidden, norm, embedding)
    gradients = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors if with_gradients]
    loss = _native.head_loss(
        contiguous_array(hidden, hidden.dtype),
        contiguous_array(norm, hidden.dtype),
        contiguous_array(embedding, hidden.dtype),
        contiguous_array(positions, torch.int64),
        contiguous_array(targets, torch.int64),
        weight,
        tuple(x.numpy() for x in gradients) if with_gradients else None,
        precision=precision,
        isa=_arguments.isa(),
        num_threads=num_threads(torch.get_num_threads()),
    )
    return [hidden.new_tensor(loss), *gradients]


def _weight_arrays(weights: Sequence[torch.Tensor | None], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(None if x is None else contiguous_array(x, dtype) for x in weights)


def _place_arrays(
    cosines: torch.Tensor, sines: torch.Tensor, cu_seqlens: torch.Tensor, dtype: torch.dtype
) -> tuple[Any, ...]:
    return (*(contiguous_array(x, dtype) for x in (cosines, sines)), contiguous_array(cu_seqlens, torch.int64))


def _but_omega(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [x for i, x in enumerate(weights) if i != BlockWeights._fields.index("omega")]


def _choice(
    num_heads: int, attention: str, causal: bool, dropout: float, precision: str, key: torch.Tensor
) -> dict[str, Any]:
    return {
        "num_heads": num_heads,
        "feature_map": None if attention == EXACT else attention,
        "causal": causal,
        "dropout": dropout,
        "key": int(key),
        "precision": precision,
        "isa": _arguments.isa(),
        "num_threads": num_threads(torch.get_num_threads()),
    }


def _block_fake(hidden: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
    output = hidden.new_empty(hidden.shape)
    if not rest[-1]:
        return [output]
    sizes = _trace_sizes(hidden, rest[1], rest[7], rest[-_NUM_OPTIONS])
    return [output, *(hidden.new_empty(hidden.shape[0] * size) for size in sizes)]


def _block_backward_fake(grad: torch.Tensor, hidden: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
    return [x.new_empty(x.shape) for x in (hidden, *_but_omega(rest[:_NUM_WEIGHTS]))]


def _token_loss_fake(
    hidden: torch.Tensor, norm: torch.Tensor, embedding: torch.Tensor, *rest: Any
) -> list[torch.Tensor]:
    gradients = [x.new_empty(x.shape) for x in (hidden, norm, embedding) if rest[-1]]
    return [hidden.new_empty(()), *gradients]


def _block_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    *tensors, num_heads, attention, causal, dropout, precision, ctx.is_kept = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.num_tensors = len(tensors)
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.options = (num_heads, attention, causal, dropout, precision)


def _block_gradient(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    count = ctx.num_tensors
    if grad is None:
        return (None,) * (count + _NUM_OPTIONS)
    _check_kept(ctx, "block", "is_traced")
    # Read once: a checkpoint computes what was saved again for that.
    saved = ctx.saved_tensors
    tensors, trace = saved[:count], saved[count:]
    found = torch.ops.protperf.block_backward(grad, *tensors, list(trace), *ctx.options)
    at = 1 + BlockWeights._fields.index("omega")
    return (*found[:at], None, *found[at:], *(None,) * (count - 1 - _NUM_WEIGHTS + _NUM_OPTIONS))


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.is_kept = inputs[-1]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _loss_gradient(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    _check_kept(ctx, "token_loss", "with_gradients")
    saved = ctx.saved_tensors
    tensors, gradients = saved[:3], [grad * x for x in saved[3:]]
    if torch.is_grad_enabled():
        # They depend on the tensors, which a product with constants does not show.
        gradients = list(_OnceOnly.apply(*gradients, *tensors))
    return (*gradients, *(None,) * 5)


class _OnceOnly(torch.autograd.Function):
    """Three gradients as they are, which refuse to be differentiated again."""

    @staticmethod
    def forward(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors[:3])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _no_second_gradient(ctx)


def _check_kept(ctx: Any, name: str, option: str) -> None:
    """Refuse the gradient of a call that kept nothing for it."""
    if not ctx.is_kept:
        raise RuntimeError(f"torch.ops.protperf.{name} was called with {option}=False, so it has no gradient")


def _no_second_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.num_inputs = len(inputs)


def _no_second_gradient(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise RuntimeError(f"the native block and loss have first derivatives alone; for second ones {_COMPOSED}")


for _name, _kernel, _fake, _setup, _rule in (
    ("block", _block, _block_fake, _block_setup, _block_gradient),
    ("block_backward", _block_backward, _block_backward_fake, _no_second_setup, _no_second_gradient),
    ("token_loss", _token_loss, _token_loss_fake, _loss_setup, _loss_gradient),
):
    _library.impl(_name, translate_out_of_memory(_kernel), "CPU")
    library.register_fake(f"protperf::{_name}", _fake, lib=_library)
    define_gradient(_library, _name, _setup, _rule, _COMPOSED)
