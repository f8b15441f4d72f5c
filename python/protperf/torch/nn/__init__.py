"""Attention as modules."""

from __future__ import annotations

from protperf.torch.nn.core import ExactAttention, attention_core
from protperf.torch.nn.favor import FavorAttention
from protperf.torch.nn.fitted import FittedAttention
from protperf.torch.nn.learned import LearnedAttention
from protperf.torch.nn.multihead import MultiheadAttention
from protperf.torch.nn.performer import Performer, PerformerLM, PerformerState
from protperf.torch.nn.performer_pytorch import (
    from_performer_pytorch,
    language_model_from_performer_pytorch,
    performer_from_performer_pytorch,
)
from protperf.torch.nn.positions import QKNorm, Rotary
from protperf.torch.nn.redraw import redraw_attention
from protperf.torch.nn.replace import replace_attention, restore_attention
from protperf.torch.nn.sdpa import scaled_dot_product_attention, sdpa_answered_by
from protperf.torch.nn.windowed import WindowedHeads, WindowedState

__all__ = [
    "ExactAttention",
    "FavorAttention",
    "FittedAttention",
    "LearnedAttention",
    "MultiheadAttention",
    "Performer",
    "PerformerLM",
    "PerformerState",
    "QKNorm",
    "Rotary",
    "WindowedHeads",
    "WindowedState",
    "attention_core",
    "from_performer_pytorch",
    "language_model_from_performer_pytorch",
    "performer_from_performer_pytorch",
    "redraw_attention",
    "replace_attention",
    "restore_attention",
    "scaled_dot_product_attention",
    "sdpa_answered_by",
]
