"""Exact softmax attention within a window, in time and memory linear in length, in plain torch.

Queries are cut into blocks. What a block may see is one slice of the keys, longer than the block by the window on
either side, so that slices overlap. Each block becomes a batch entry of torch's own kernel, with the band as its mask.
Blocks are no shorter than the window, so about half of the scores that are computed are of use.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import pad

from protperf.torch.masked import attend_masked

__all__ = ["windowed_attention"]

_MIN_BLOCK = 64


def windowed_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int,
    *,
    causal: bool,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention to keys at a distance of at most `window`, and not to later ones if `causal`.

    Shapes: q [B,H,L,D], k [B,H,S,D], v [B,H,S,E], none of them empty; returns [B,H,L,E]. Queries are
    the last L of the S positions, or begin with the first where L > S. Special rows as in `softmax_attention`.
    """
    batch, q_len = q.shape[0], q.shape[2]
    offset = max(k.shape[2] - q_len, 0)
    cut = _Blocks(max(window, _MIN_BLOCK), window, 0 if causal else window, offset, q_len, k.shape[2])
    seen = cut.visible(cu_seqlens, key_padding_mask, q.device).expand(batch, -1, -1, -1)
    out = attend_masked(cut.queries(q), cut.keys(k), cut.keys(v), seen.flatten(0, 1)[:, None])
    return out.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, :q_len]


class _Blocks(NamedTuple):
    """How rows are cut.

    Attributes:
        size: queries of a block.
        before, after: how many positions earlier and later keys are seen.
        offset: how many keys come before the first query.
    """

    size: int
    before: int
    after: int
    offset: int
    q_len: int
    kv_len: int

    @property
    def num_blocks(self) -> int:
        if torch.compiler.is_compiling():
            # A block too many, so that a graph need not be made anew where there is 1 or where the last one is full.
            return self.q_len // self.size + 2
        return -(-self.q_len // self.size)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [B,H,L,D] as [B n,H,size,D], with zeros after the last."""
        x = pad(x, (0, 0, 0, self.num_blocks * self.size - self.q_len))
        return x.unflatten(2, (-1, self.size)).transpose(1, 2).flatten(0, 1)

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [B,H,S,D] as [B n,H,before + size + after,D]: what each block may see."""
        return self._slices(x.mT, 0).permute(0, 3, 1, 4, 2).flatten(0, 1)

    def visible(
        self, cu_seqlens: torch.Tensor | None, key_padding_mask: torch.Tensor | None, device: torch.device
    ) -> torch.Tensor:
        """Which of its keys each query sees: bool [B or 1,n,size,before + size + after]."""
        position = torch.arange(self.kv_len, device=device)
        ends = self._slices(position[None], -1)[:, :, None]
        width = self.before + self.after
        steps = torch.arange(self.size + width, device=device) - torch.arange(self.size, device=device)[:, None]
        seen = (ends >= 0) & (steps >= 0) & (steps <= width)
        if cu_seqlens is not None:
            segment = torch.bucketize(position, cu_seqlens.to(device=device, dtype=torch.int64), right=True)
            of_keys = self._slices(segment[None], -1)
            of_queries = of_keys[:, :, self.before : self.before + self.size, None]
            seen = seen & (of_keys[:, :, None] == of_queries)
        if key_padding_mask is not None:
            seen = seen & ~self._slices(key_padding_mask, True)[:, :, None]
        return seen

    def _slices(self, x: torch.Tensor, fill: float) -> torch.Tensor:
        """What each block may see of [..,S]: overlapping slices [..,n,before + size + after]."""
        last = self.num_blocks * self.size + self.after + self.offset - self.kv_len
        padded = pad(x, (self.before - self.offset, last), value=fill)
        return padded.unfold(-1, self.before + self.size + self.after, self.size)
