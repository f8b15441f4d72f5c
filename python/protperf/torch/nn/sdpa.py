"""Calls of torch's `scaled_dot_product_attention` answered by a module of this package."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from protperf.errors import ConfigError, ShapeError
from protperf.torch.nn.masks import check_dropout, hidden_by, masks_of

__all__ = ["scaled_dot_product_attention", "sdpa_answered_by"]


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    core: torch.nn.Module,
) -> torch.Tensor:
    """A call of `torch.nn.functional.scaled_dot_product_attention` answered by `core`, such as a `FavorAttention`.

    Shapes: query [..,H,L,D], key [..,Hk,S,D], value [..,Hk,S,E]; `attn_mask` is any that fits [..,H,L,S], bool, True
    where a key counts, or 0 there and -inf elsewhere. It may hide later keys from each query (the causal mask), some
    keys from all queries, or both; a single query has no other masks. A query that sees no key gives 0.

    Raises:
        ConfigError: dropout, or another mask; ShapeError: less than 3 axes, or a mask that does not fit.
    """
    check_dropout(dropout_p)
    if query.dim() < 3:
        raise ShapeError(f"query has {query.dim()} axes; it must be [..,H,L,D]")
    if key.shape[-3] != query.shape[-3] and not enable_gqa:
        raise ConfigError(f"key has {key.shape[-3]} heads but query {query.shape[-3]}; enable_gqa=True lets them share")
    batch = query.shape[:-3]
    q, k, v = (x.reshape(math.prod(batch), *x.shape[-3:]) for x in (query, key, value))
    if scale is not None:
        q = q * (scale * q.shape[-1] ** 0.5)
    padding = None
    if attn_mask is not None:
        hidden = ~attn_mask if attn_mask.dtype == torch.bool else hidden_by("attn_mask", attn_mask)
        masked, padding = masks_of(hidden, tuple(batch), q.shape[1], q.shape[2], k.shape[2])
        is_causal = is_causal or masked
    # None leaves it to the core; a single query of many keys is the last of them and sees all.
    causal = True if is_causal else (False if q.shape[2] == 1 != k.shape[2] else None)
    out: torch.Tensor = core(q, k, v, causal=causal, key_padding_mask=padding)
    return out.reshape(*batch, *out.shape[1:])


@contextlib.contextmanager
def sdpa_answered_by(core: torch.nn.Module) -> Iterator[None]:
    """Answer calls of `torch.nn.functional.scaled_dot_product_attention` inside of a `with` by `core`.

    For models whose code you cannot or do not want to change; where their modules can be replaced, `replace_attention`
    gives every layer directions of its own. Calls are answered as by `protperf.torch.nn.scaled_dot_product_attention`,
    by any name under which the model imported torch's function, and what that refuses is refused. After the `with`,
    also where it was left by an exception, and in other threads all calls are torch's own.

        with sdpa_answered_by(FavorAttention(64, 256)):
            out = model(x)

    Only calls of that function are seen. `torch.nn.MultiheadAttention`, and with it `TransformerEncoder`, whose fast
    path makes no such call, is refused: `replace_attention` serves it. Attention in graphs that were compiled or
    exported before, and in kernels of other libraries such as FlashAttention, stays what it is without a word. One core
    answers the calls of all layers, so it must fit the heads of each.

    Args:
        core: a module that is called as `FavorAttention` is. Move it to the device of the model.

    Raises:
        ConfigError: inside of the `with`: a call of `torch.nn.MultiheadAttention`, or one that is refused.
    """
    with _Answered(core):
        yield


class _Answered(TorchFunctionMode):
    """Sees the calls of torch's functions in this thread; it is off while it answers one."""

    def __init__(self, core: torch.nn.Module) -> None:
        super().__init__()
        self.core = core

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return scaled_dot_product_attention(*args, **(kwargs or {}), core=self.core)
        if func is torch.nn.functional.multi_head_attention_forward:
            # What it calls is not seen, so it would be softmax after all.
            raise ConfigError("torch.nn.MultiheadAttention is not answered by a core; change it by replace_attention")
        return func(*args, **(kwargs or {}))
