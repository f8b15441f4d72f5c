"""Masks as torch's modules and functions take them, as the two that linear attention has: causal, and padded keys.

A mask of torch hides single pairs of a query and a key. Linear attention computes no pairs, so it can hide later keys
from every query, some keys from all queries, or both; every other mask is refused.
"""

from __future__ import annotations

import torch

from protperf.errors import ConfigError, ShapeError

__all__ = ["Masks", "check_dropout", "hidden_by", "masks_of"]

Masks = tuple[bool, torch.Tensor | None]
"""Whether the mask is causal, and `key_padding_mask` [B,S], True where no query sees a key."""


def check_dropout(dropout: float) -> None:
    """Refuse dropout of weights.

    Raises:
        ConfigError: there is some.
    """
    if dropout:
        raise ConfigError(f"dropout is {dropout}, but there are no weights to drop in linear attention; set it to 0")


def hidden_by(name: str, mask: torch.Tensor) -> torch.Tensor:
    """Which pairs a mask hides that is added to logits: those of -inf, or of the lowest number of its type.

    The lowest number does what -inf does, except in a row that has no other: that would be a mean over all keys.

    Raises:
        ConfigError: a number that is neither these nor 0, such a row, or a mask that needs a gradient.
    """
    if not mask.is_floating_point():
        raise ConfigError(f"{name} has type {mask.dtype}; it must be bool or a floating type")
    if mask.requires_grad:
        raise ConfigError(f"{name} needs a gradient, but linear attention has no logits to add it to")
    hidden = mask <= torch.finfo(mask.dtype).min
    _require(
        (hidden | (mask == 0)).all(),
        f"{name} has numbers other than 0 and -inf; it is not the causal mask, nor one of keys",
    )
    _require(
        ~(hidden.all(-1) & (mask != -torch.inf).any(-1)).any(),
        f"{name} has rows of the lowest number alone, which hides no key; use -inf",
    )
    return hidden


def _require(condition: torch.Tensor, message: str) -> None:
    """Raise ConfigError unless a condition holds; a compiled graph, which knows no values yet, checks when it runs."""
    if torch.compiler.is_compiling():
        torch._assert_async(condition, message)
    elif not bool(condition):
        raise ConfigError(message)


def masks_of(hidden: torch.Tensor, batch: tuple[int, ...], num_heads: int, q_len: int, kv_len: int) -> Masks:
    """What a mask of pairs [..,H or 1,L or 1,S or 1], True where one is hidden, hides in terms of linear attention.

    Args:
        batch: sizes of the axes before that of the heads.

    Raises:
        ShapeError: a mask that does not fit; ConfigError: one that no linear attention has.
    """
    needed = (*batch, num_heads, q_len, kv_len)
    pairs = zip(reversed(hidden.shape), reversed(needed), strict=False)
    if hidden.dim() > len(needed) or any(found not in (1, size) for found, size in pairs):
        raise ShapeError(f"attn_mask has shape {list(hidden.shape)}; it must fit [..,H,L,S] {list(needed)}")
    if 0 in needed:
        return False, None
    hidden = hidden.reshape((1,) * (len(needed) - hidden.dim()) + hidden.shape)
    first = hidden[..., :1, :, :]
    if hidden.shape[-3] > 1 and not torch.equal(hidden, first.expand_as(hidden)):
        raise ConfigError("attn_mask is not the same for all heads; linear attention takes none of single heads")
    hidden = first.squeeze(-3).expand(*first.shape[:-3], first.shape[-2], kv_len)
    # The last query of a causal mask sees every key that any query sees.
    last = hidden[..., -1:, :]
    padding = last.expand(*batch, 1, kv_len).reshape(-1, kv_len)
    if hidden.shape[-2] == 1 or torch.equal(hidden, last.expand_as(hidden)):
        return False, padding
    later = torch.ones(q_len, kv_len, dtype=torch.bool, device=hidden.device).triu(1)
    if q_len != kv_len or not torch.equal(hidden, later | last):
        raise ConfigError(
            "attn_mask is not the causal mask, nor one of keys alone, nor both; linear attention takes no other"
        )
    return True, padding if bool(padding.any()) else None
