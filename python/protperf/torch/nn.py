"""Attention as a module: it keeps omega, and nothing else."""

from __future__ import annotations

import torch

from protperf.errors import ConfigError
from protperf.functional import draw_projection, feature_maps
from protperf.torch.functional import favor_attention
from protperf.torch.memory import translate_out_of_memory

__all__ = ["FavorAttention"]


class FavorAttention(torch.nn.Module):
    """FAVOR+ attention without input or output projections.

    omega is a persistent buffer, so checkpoints hold it: [M,D], or [H,M,D] with `num_heads`. It is drawn from the seed;
    `redraw(draw)` replaces it, which a training loop does between optimizer steps and nothing does in eval.

    Args:
        head_dim: D.
        num_features: M, rows of omega.
        num_heads: one omega for each head; None shares one.
        feature_map: a name from `protperf.feature_maps()`.
        causal: position i attends to positions <= i.
        seed: of omega.
    """

    omega: torch.Tensor

    def __init__(
        self,
        head_dim: int,
        num_features: int = 256,
        *,
        num_heads: int | None = None,
        feature_map: str = "positive",
        causal: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_heads is not None and num_heads < 1:
            raise ConfigError(f"num_heads is {num_heads}; it must be at least 1, or None to share one omega")
        if feature_map not in feature_maps():
            raise ConfigError(f"feature_map {feature_map!r} is unknown; choose one of {', '.join(feature_maps())}")
        self.head_dim, self.num_features, self.num_heads = head_dim, num_features, num_heads
        self.feature_map, self.causal, self.seed = feature_map, causal, seed
        self.register_buffer("omega", self._drawn(0))

    @translate_out_of_memory
    def _drawn(self, draw: int) -> torch.Tensor:
        heads = [
            torch.from_numpy(draw_projection(self.num_features, self.head_dim, seed=self.seed, stream=(0, head, draw)))
            for head in range(self.num_heads or 1)
        ]
        omega = heads[0] if self.num_heads is None else torch.stack(heads)
        return omega.to(torch.get_default_dtype())

    def redraw(self, draw: int) -> None:
        """Replace omega by draw number `draw` of the seed, in place and in its type."""
        self.omega.copy_(self._drawn(draw))

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        cu_seqlens: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Shapes and masks as in `protperf.torch.favor_attention`."""
        return favor_attention(
            q,
            k,
            v,
            self.omega,
            feature_map=self.feature_map,
            causal=self.causal,
            cu_seqlens=cu_seqlens,
            key_padding_mask=key_padding_mask,
        )

    def extra_repr(self) -> str:
        return (
            f"head_dim={self.head_dim}, num_features={self.num_features}, num_heads={self.num_heads}, "
            f"feature_map={self.feature_map!r}, causal={self.causal}, seed={self.seed}"
        )
