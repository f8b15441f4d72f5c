"""What decides the directions of a module, as a few numbers that lie next to them, and the directions themselves."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

import torch

from protperf.functional import draw_projection

__all__ = ["MAX_DRAW", "DrawKey"]

MAX_DRAW = 2**32 - 1
_SAMPLERS = ("orthogonal", "iid", "simplex", "hadamard")
_NORMS = ("chi", "sqrt_dim")
"""Numbered by their place, in keys that are kept: new ones go to the end."""


class DrawKey(NamedTuple):
    """What omega is a function of. `kind` is the sampler and the norm; None in keys from before they were kept."""

    seed: int
    layer: int
    draw: int
    kind: tuple[str, str] | None

    def packed(self) -> list[int]:
        """Four numbers of 64 bits with a sign, the last one a checksum of the others.

        The upper half of the third one says which kind, and is 0 where there is none.
        """
        kind = self.kind
        sampled = 0 if kind is None else 1 << 31 | _SAMPLERS.index(kind[0]) << 8 | _NORMS.index(kind[1])
        words = struct.pack("<QQQ", self.seed, self.layer, sampled << 32 | self.draw)
        checksum = hashlib.blake2b(words, digest_size=8, person=b"omega").digest()
        return list(struct.unpack("<qqqq", words + checksum))

    @classmethod
    def unpacked(cls, numbers: list[int]) -> DrawKey | None:
        """The key that was packed into these; None where the checksum is another."""
        seed, layer, word = (word % 2**64 for word in numbers[:3])
        sampled, draw = divmod(word, 2**32)
        sampler, norm = sampled >> 8 & 0xFF, sampled & 0xFF
        if sampled and (sampler >= len(_SAMPLERS) or norm >= len(_NORMS)):
            return None
        key = cls(seed, layer, draw, (_SAMPLERS[sampler], _NORMS[norm]) if sampled else None)
        return key if key.packed() == numbers else None

    @torch.no_grad()
    def fill(self, omega: torch.Tensor) -> None:
        """Put the directions of every head in the place of omega [M,D] or [H,M,D], in its type; all or none of them.

        The kind has to be known.
        """
        assert self.kind is not None
        sampler, norm = self.kind
        num_features, head_dim = omega.shape[-2:]
        heads = [
            draw_projection(
                num_features, head_dim, sampler=sampler, norm=norm, seed=self.seed, stream=(self.layer, head, self.draw)
            )
            for head in range(omega.shape[0] if omega.dim() == 3 else 1)
        ]
        for directions, drawn in zip(omega if omega.dim() == 3 else omega[None], heads, strict=True):
            # Narrowed on the CPU, for some devices have no float64.
            directions.copy_(torch.from_numpy(drawn).to(omega.dtype))
