"""Attention as torch operators with gradients, and as modules (`protperf.torch.nn`)."""

from __future__ import annotations

from protperf.torch import fitting, nn, reference, regime, seeing
from protperf.torch.block import BlockWeights, token_loss, transformer_block
from protperf.torch.exact import softmax_attention
from protperf.torch.functional import favor_attention, favor_attention_with_state, merge_states
from protperf.torch.team import share_threads

__all__ = [
    "BlockWeights",
    "favor_attention",
    "favor_attention_with_state",
    "fitting",
    "merge_states",
    "nn",
    "reference",
    "regime",
    "seeing",
    "softmax_attention",
    "token_loss",
    "transformer_block",
]

share_threads()
