"""Which rows belong together, gathered a chunk at a time: a sequence is one batch entry or one packed segment.

Batch entries are sequences of equal length and are walked as slices. Packed segments of similar length are walked side
by side, so that many short ones take no more steps than one long one; a group of them gathers a bounded number of
rows at once, however many segments there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

__all__ = ["RowCollector", "Sequences", "StateCollector", "batch_sequences", "packed_sequences"]

_MAX_GATHERED = 4096
"""Rows of one head that a group of segments gathers for one chunk."""


@dataclass(frozen=True)
class Sequences:
    """Sequences that are walked side by side: all batch entries, or a group of packed segments.

    Shapes: padding bool [n,S]; of a group of segments: segments [n], their numbers; rows [n,length], the position of
    each row, and lengths [n], how many of them there are.
    """

    count: int
    q_len: int
    kv_len: int
    padding: torch.Tensor | None = None
    segments: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    lengths: torch.Tensor | None = None

    def chunks(self, length: int, chunk_size: int) -> list[tuple[int, int]]:
        """Borders of the chunks of so many rows; the last one is rounded up to a power of two."""
        starts = range(0, length, chunk_size)
        return [(low, low + min(chunk_size, _next_power_of_two(length - low))) for low in starts]

    def take(self, x: torch.Tensor, low: int, high: int) -> torch.Tensor:
        """Rows low..high of each sequence, [n,H,high-low,width], of x [B,H,L,width]; anything past the end."""
        if self.rows is not None:
            return x[0][:, self.rows[:, low:high]].transpose(0, 1)
        taken = x[:, :, low:high]
        missing = high - low - taken.shape[2]
        return torch.nn.functional.pad(taken, (0, 0, 0, missing)) if missing else taken

    def take_states(self, states: torch.Tensor) -> torch.Tensor:
        """The states [n,H,F,2+E] of these sequences, of [B or num_segments,H,F,2+E]."""
        return states if self.segments is None else states[self.segments]

    def inside(self, low: int, high: int) -> torch.Tensor | None:
        """Which rows low..high are not past the end, bool [n,1,high-low]; None where such rows are zero."""
        if self.lengths is None:
            return None
        return (torch.arange(low, high, device=self.lengths.device) < self.lengths[:, None])[:, None]

    def exists(self, low: int, high: int, device: torch.device) -> torch.Tensor | None:
        """Which of the keys low..high there are: not padding, not past the end; bool [n or 1,1,high-low], or None."""
        if self.lengths is not None:
            return self.inside(low, high)
        missing = max(high - self.kv_len, 0)
        if self.padding is not None:
            kept = ~self.padding[:, None, low:high]
            return torch.nn.functional.pad(kept, (0, missing)) if missing else kept
        return (torch.arange(low, high, device=device) < self.kv_len)[None, None] if missing else None

    def places(self, low: int, high: int, nowhere: int) -> torch.Tensor:
        """Positions [n * (high-low)] of the rows of a group of segments; `nowhere` for rows past the end."""
        assert self.rows is not None
        assert self.lengths is not None
        inside = torch.arange(low, high, device=self.rows.device) < self.lengths[:, None]
        return torch.where(inside, self.rows[:, low:high], nowhere).flatten()


def batch_sequences(batch: int, q_len: int, kv_len: int, padding: torch.Tensor | None) -> list[Sequences]:
    """One sequence for each batch entry."""
    return [Sequences(batch, q_len, kv_len, padding)]


def packed_sequences(borders: Sequence[int], chunk_size: int, device: torch.device) -> list[Sequences]:
    """Groups of segments, short ones first, so that those of a group have similar lengths."""
    lengths = [high - low for low, high in itertools.pairwise(borders)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [_group(group, borders, lengths, device) for group in _groups(order, lengths, chunk_size)]


def _groups(order: Sequence[int], lengths: Sequence[int], chunk_size: int) -> Iterator[list[int]]:
    group: list[int] = []
    for segment in order:
        step = min(chunk_size, _next_power_of_two(lengths[segment]))
        # A segment twice as long as the shortest of its group would leave half of that one's steps empty.
        if group and ((len(group) + 1) * step > _MAX_GATHERED or lengths[segment] > 2 * max(lengths[group[0]], 16)):
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _group(group: list[int], borders: Sequence[int], lengths: Sequence[int], device: torch.device) -> Sequences:
    longest = lengths[group[-1]]
    starts = torch.tensor([borders[segment] for segment in group])
    # Chunks are rounded up: at most twice as many rows as the longest sequence has.
    rows = starts[:, None] + torch.arange(2 * _next_power_of_two(longest))
    rows = rows.clamp(max=max(borders[-1] - 1, 0))
    counts = torch.tensor([lengths[segment] for segment in group])
    return Sequences(
        len(group), longest, longest, None, torch.tensor(group).to(device), rows.to(device), counts.to(device)
    )


def _next_power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


class RowCollector:
    """Puts results of chunks together again, [B,H,L,width].

    In place, results are written into one buffer: no second copy ever exists, but nothing can be differentiated
    through it. Otherwise they are kept and joined at the end.
    """

    def __init__(self, shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype, in_place: bool) -> None:
        self._shape, self._dtype, self._like = list(shape), dtype, like
        self._in_place = in_place
        self._buffer: torch.Tensor | None = None
        self._pieces: list[tuple[int, torch.Tensor, torch.Tensor | None]] = []

    def put(self, sequences: Sequences, low: int, piece: torch.Tensor) -> None:
        """Rows from `low` of the sequences, [n,H,rows,width]; rows past the end are dropped."""
        length = self._shape[2]
        if sequences.rows is not None:
            places = sequences.places(low, low + piece.shape[2], length)
            piece = piece.transpose(0, 1).flatten(1, 2)
            if self._in_place:
                self._filled(length + 1)[0].index_copy_(1, places, piece.to(self._dtype))
                return
            self._pieces.append((low, piece, places))
            return
        piece = piece[:, :, : length - low]
        if self._in_place:
            self._filled(length)[:, :, low : low + piece.shape[2]] = piece
        else:
            self._pieces.append((low, piece, None))

    def result(self) -> torch.Tensor:
        """All of them; zeros where nothing was put."""
        _, heads, length, width = self._shape
        if self._buffer is not None:
            return self._buffer[:, :, :length].contiguous()
        if not self._pieces:
            return self._like.new_zeros(self._shape, dtype=self._dtype)
        if self._pieces[0][2] is None:
            ordered = sorted(self._pieces, key=lambda piece: piece[0])
            return torch.cat([piece for _, piece, _ in ordered], 2).to(self._dtype)
        joined = torch.cat([piece for _, piece, _ in self._pieces], 1)
        places = torch.cat([places for _, _, places in self._pieces if places is not None])
        rows = joined.new_zeros(heads, length + 1, width).index_copy(1, places, joined)
        return rows[None, :, :length].to(self._dtype)

    def _filled(self, length: int) -> torch.Tensor:
        if self._buffer is None:
            batch, heads, _, width = self._shape
            self._buffer = self._like.new_empty((batch, heads, length, width), dtype=self._dtype)
        return self._buffer


class StateCollector:
    """Puts states, or gradients of states, of sequences together again: [num_sequences,H,F,2+E]."""

    def __init__(self, shape: Sequence[int], like: torch.Tensor, dtype: torch.dtype) -> None:
        self._shape, self._like, self._dtype = list(shape), like, dtype
        self._states: list[tuple[torch.Tensor | None, torch.Tensor]] = []

    def put(self, sequences: Sequences, states: torch.Tensor) -> None:
        """The states of these sequences."""
        self._states.append((sequences.segments, states))

    def result(self) -> torch.Tensor:
        """All of them, in the order of the batch or of the segments."""
        if not self._states:
            return self._like.new_zeros(self._shape, dtype=self._dtype)
        if self._states[0][0] is None:
            return self._states[0][1]
        segments = torch.cat([segments for segments, _ in self._states if segments is not None])
        states = torch.cat([states for _, states in self._states])
        return torch.zeros_like(states).index_copy(0, segments, states)
