"""Some heads exact within a window, next to heads that estimate attention to everything.

Near residues are where attention is sharp and estimates are poor; far ones are where a window sees nothing. A layer may
have heads of both kinds, and its time and memory stay linear in length.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from protperf import _arguments
from protperf.errors import ConfigError, ShapeError
from protperf.torch.autocast import autocast
from protperf.torch.exact import check_window, softmax_attention
from protperf.torch.window import windowed_attention

__all__ = ["WindowedHeads", "WindowedState"]


class WindowedState(NamedTuple):
    """What later queries see of the keys so far.

    Shapes: favor [B,H,F,2+E] of the other heads; of the heads with a window the last W <= window positions, keys
    [B,Hk,W,D] and values [B,Hk,W,E], and which of those are padding, bool [B,W].
    """

    favor: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    padding: torch.Tensor


class WindowedHeads(torch.nn.Module):
    """The last `num_window_heads` heads attend exactly within a window, the heads before them by another module.

    Args:
        core: of the other heads, such as a `FavorAttention` with as many heads.
        num_heads: H, all of them.
        num_window_heads: from 1 to H - 1. With grouped queries it must be whole groups.
        window: how many positions away a key may be.
        causal: of all heads, unless a call says otherwise.

    Raises:
        DtypeError, ConfigError: an argument of the wrong kind or out of range.
    """

    def __init__(
        self, core: torch.nn.Module, *, num_heads: int, num_window_heads: int, window: int, causal: bool = False
    ) -> None:
        super().__init__()
        self.core = core
        self.num_heads = _arguments.check_integer("num_heads", num_heads)
        self.num_window_heads = _arguments.check_integer("num_window_heads", num_window_heads)
        if not 0 < self.num_window_heads < self.num_heads:
            found = f"num_window_heads is {num_window_heads} of {num_heads} heads"
            raise ConfigError(f"{found}; it must be at least 1, and leave at least 1 head without a window")
        self.window, self.causal = check_window(window), _arguments.check_flag("causal", causal)

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        causal: bool | None = None,
        cu_seqlens: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Shapes and masks as in `protperf.torch.favor_attention`; `causal` None is the module's own."""
        causal = self.causal if causal is None else causal
        masks: dict[str, Any] = {"causal": causal, "cu_seqlens": cu_seqlens, "key_padding_mask": key_padding_mask}
        far, near = self.split(q, k, v)
        return torch.cat([self.core(*far, **masks), softmax_attention(*near, window=self.window, **masks)], 1)

    def with_state(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        state: WindowedState | None = None,
        *,
        causal: bool = True,
        key_padding_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, WindowedState]:
        """Output and state after these keys, as `FavorAttention.with_state`, in memory that does not grow.

        `causal` must be true, for a window that looks ahead would need keys that are yet to come.

        Raises:
            ConfigError: `causal=False`.
        """
        if not causal:
            raise ConfigError("heads with a window continue a sequence only with causal=True")
        far, (q_near, k_near, v_near) = self.split(*autocast(q, k, v))
        out, favor = self.core.with_state(  # type: ignore[operator]
            *far, None if state is None else state.favor, causal=True, key_padding_mask=key_padding_mask
        )
        padding = key_padding_mask
        if padding is None:
            padding = torch.zeros(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        if state is not None:
            k_near, v_near = torch.cat([state.keys, k_near], 2), torch.cat([state.values, v_near], 2)
            padding = torch.cat([state.padding, padding], 1)
        near = _attend_near(q_near, k_near, v_near, padding, self.window)
        first = max(k_near.shape[2] - self.window, 0)
        after = WindowedState(favor, k_near[:, :, first:], v_near[:, :, first:], padding[:, first:])
        return torch.cat([out, near], 1), after

    def observe(self, q: torch.Tensor, k: torch.Tensor, **options: Any) -> None:
        """Pass the queries and keys of the other heads on to a `FittedAttention`."""
        far, _ = self.split(q, k)
        self.core.observe(*far, **options)  # type: ignore[operator]

    def extra_repr(self) -> str:
        """The arguments that `core` does not show."""
        return f"num_window_heads={self.num_window_heads} of {self.num_heads}, window={self.window}"

    def split(self, *tensors: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The heads of each kind, of queries and of the keys and values that they may share."""
        far, near = [], []
        for name, x in zip("qkv", tensors, strict=False):
            heads = x.shape[1]
            # No divmod: where a compiler knows the number of heads by a symbol alone, it has none.
            count = self.num_window_heads * heads // self.num_heads
            if count * self.num_heads != self.num_window_heads * heads or not 0 < count < heads:
                found = f"{name} has {heads} heads"
                share = f"{self.num_window_heads} of {self.num_heads} heads"
                raise ShapeError(f"{found}; {share} are not a whole number of them")
            far.append(x[:, : heads - count])
            near.append(x[:, heads - count :])
        return far, near


def _attend_near(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, padding: torch.Tensor, window: int) -> torch.Tensor:
    """Causal attention within a window of queries that are the last of the positions of the keys."""
    if q.numel() == 0 or v.numel() == 0:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return windowed_attention(q, k, v, window, causal=True, key_padding_mask=padding)
