"""Attention with projections, in the place of `torch.nn.MultiheadAttention`."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from protperf.errors import ConfigError
from protperf.torch.nn.core import attention_core
from protperf.torch.nn.masks import check_dropout, hidden_by

__all__ = ["MultiheadAttention"]


class MultiheadAttention(torch.nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose attention is linear in length: the same parameters, names and call.

    A torch state dictionary is loaded with `strict=False`, for it has no omega; `like` makes a module that shares the
    parameters of a torch one.

    What linear attention cannot do is refused: dropout of weights, and masks other than padding and the causal one.
    Weights are returned only where `need_weights=True` asks for them, which takes O(L S) memory.

    Args:
        embed_dim, num_heads, bias, kdim, vdim, batch_first, device, dtype: as in torch.
        dropout: 0.
        attention: the arguments of `attention_core`, such as `feature_map` and `num_features`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
        **attention: Any,
    ) -> None:
        check_dropout(dropout)
        super().__init__(
            embed_dim, num_heads, 0.0, bias, kdim=kdim, vdim=vdim, batch_first=batch_first, device=device, dtype=dtype
        )
        self.core = attention_core(self.head_dim, num_heads, device=device, dtype=dtype, **attention)
        self._is_packed = self._qkv_same_embed_dim
        # A layer of torch would otherwise compute softmax from these parameters by itself in evaluation.
        self._qkv_same_embed_dim = False

    @classmethod
    def like(cls, module: torch.nn.MultiheadAttention, **attention: Any) -> MultiheadAttention:
        """A module with the very parameters of a torch module.

        Raises:
            ConfigError: it has dropout, `add_bias_kv` or `add_zero_attn`.
        """
        check_dropout(module.dropout)
        if module.bias_k is not None or module.add_zero_attn:
            raise ConfigError("add_bias_kv and add_zero_attn have no linear form; leave them out")
        made = cls(
            module.embed_dim,
            module.num_heads,
            bias=module.in_proj_bias is not None,
            kdim=module.kdim,
            vdim=module.vdim,
            batch_first=module.batch_first,
            device=module.out_proj.weight.device,
            dtype=module.out_proj.weight.dtype,
            **attention,
        )
        _share(module, made)
        return made

    def as_torch(self) -> torch.nn.MultiheadAttention:
        """The torch module of the same parameters, with softmax."""
        made = torch.nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            bias=self.in_proj_bias is not None,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
            device="meta",
        )
        _share(self, made)
        return made

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`, but for the default of `need_weights`."""
        is_single = query.dim() == 2
        if is_single:
            query, key, value = (x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value))
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        # None leaves it to the core.
        causal = is_causal or _is_causal_mask(attn_mask, query.shape[1], key.shape[1]) or None
        padding = _padding(key_padding_mask, is_single)
        q, k, v = (self._heads(x) for x in self._projected(query, key, value))
        out = self.core(q, k, v, causal=causal, key_padding_mask=padding)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        weights = None
        if need_weights:
            one_hot = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
            weights = self.core(q, k, one_hot, causal=causal, key_padding_mask=padding)
            weights = weights.mean(1) if average_attn_weights else weights
        if not self.batch_first:
            out = out.transpose(0, 1)
        if is_single:
            return out.squeeze(0 if self.batch_first else 1), None if weights is None else weights[0]
        return out, weights

    def _projected(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        matrices: tuple[torch.Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self._is_packed:
            matrices = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [functional.linear(x, w, b) for x, w, b in zip(inputs, matrices, biases, strict=True)]

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)


def _share(module: torch.nn.MultiheadAttention, to: torch.nn.MultiheadAttention) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        setattr(to, name, parameter)
    to.out_proj = module.out_proj
    to.train(module.training)


def _is_causal_mask(mask: torch.Tensor | None, q_len: int, kv_len: int) -> bool:
    """Whether a mask, True or -inf where a key is hidden, is the causal one; none is not.

    Raises:
        ConfigError: it is another mask.
    """
    if mask is None:
        return False
    hidden = mask if mask.dtype == torch.bool else hidden_by("attn_mask", mask)
    causal = torch.ones(q_len, kv_len, dtype=torch.bool, device=mask.device).triu(1)
    if q_len == kv_len and torch.equal(hidden.expand(*mask.shape[:-2], q_len, kv_len), causal.expand_as(hidden)):
        return True
    raise ConfigError("attn_mask is not the causal mask; linear attention takes that one and key_padding_mask alone")


def _padding(mask: torch.Tensor | None, is_single: bool) -> torch.Tensor | None:
    """A mask [B,S] as bool; torch also takes one of zeros and -inf."""
    if mask is None:
        return None
    mask = mask if mask.dtype == torch.bool else hidden_by("key_padding_mask", mask)
    return mask.unsqueeze(0) if is_single else mask
