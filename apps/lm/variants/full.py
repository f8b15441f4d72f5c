"""Strategy `full`: log-likelihood of the mutant minus that of the wild type, read left to right.

What a mutant shares with the wild type before its first change is read once for all mutants: the state after it is
copied, and only the residues from the change on are read again. So with x the wild type, y a mutant and f the index of
its first change, each a sum over scored residues,

    score = [log p(y_f | x_<f) + sum over i > f of log p(y_i | y_<i)] - sum over i >= f of log p(x_i | x_<i)

Mutants are read in the order of f. The state of the wild type moves on with them (`main` below), so one state and the
copies of one group are held at a time, for a protein of any length. Log-likelihoods are those of the method
`ll`: the end of the sequence is not counted, ambiguous residues are context.

In the reverse reading all sequences are those of `protperf.lm.direction`, the last residue first: what mutants share is
then the end of the protein, and "before" means "after" wherever a protein is meant and not a reading.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from protperf.lm import inference
from protperf.lm.alphabet import BOS, EOS, FIRST_RESIDUE, LAST_SCORED
from protperf.lm.engine import CausalState, Engine, Tokens
from protperf.lm.variants.variant import Variant
from protperf.lm.variants.wild_type import WildType
from protperf.lm.watch import Progress, no_progress

STATE_BYTES = 128 << 20
"""Memory for the copies of states that one batch may take."""
_SPAN = 32
"""Residues between the first changes of the mutants of one group: so many are read again for the later ones."""
_GRID = 16
"""Residues from one state of the wild type to the next where sums may not depend on the other mutants."""

_NO_ROWS = np.empty(0, np.int64)


class FullScorer:
    """Differences of log-likelihoods to one wild type, in one reading: `forward` or `reverse`."""

    has_lengths = True

    def __init__(
        self,
        engine: Engine,
        wild_type: WildType,
        batch_tokens: int,
        deterministic: bool,
        direction: str = "forward",
    ) -> None:
        self.name = "full" if direction == "forward" else f"full-{direction}"
        self._engine, self._wild, self._deterministic = engine, wild_type, deterministic
        self._is_reverse = direction == "reverse"
        self._start = EOS if self._is_reverse else BOS
        self._tokens = self._in_order(wild_type.tokens)
        self._chunk = inference.chunk_length(engine)
        self._budget = self._chunk if deterministic else batch_tokens
        framed = np.concatenate([[self._start], self._tokens]).astype(np.uint8)
        # Row i predicts residue i.
        with engine.computing(deterministic):
            self._rows = np.concatenate(list(inference.chunked_log_probs(engine, framed)))
        scored = _is_scored(self._tokens)
        values = np.where(scored, self._rows[np.arange(len(wild_type)), self._tokens], 0.0).astype(np.float64)
        self._from = np.append(np.cumsum(values[::-1])[::-1], 0.0)
        self._scored_before = np.append(0, np.cumsum(scored))

    def tokens_read(self, variant: Variant) -> int:
        """About how many residues are read for a variant."""
        changed = sum(len(edit.inserted) - edit.removed for edit in variant.edits)
        return len(self._wild) - self._first_change(variant) + changed if variant.edits else 0

    def check(self, variant: Variant) -> None:
        """Every variant has a score."""

    def score(self, variants: Sequence[Variant], progress: Progress = no_progress) -> NDArray[np.float64]:
        """Scores in nats and their form per residue [num_variants, 2], in the order of the variants.

        Per residue: the mutant's log-likelihood over its scored residues minus the same of the wild type. Where the
        length changes, a longer sequence has a lower sum for that alone, and this figure is the one to compare.

        Args:
            progress: called with the number of variants that are done.
        """
        found = np.zeros((len(variants), 2))
        changed = [self._mutant(i, variant) for i, variant in enumerate(variants) if variant.edits]
        changed.sort(key=lambda mutant: mutant.first)
        progress(len(variants) - len(changed))
        with self._engine.computing(self._deterministic):
            main = _WildState(self._engine, self._tokens, self._start)
            for group in self._groups(changed):
                for batch, state, starts in self._batches(main, group):
                    sums = self._read(state, batch, starts)
                    for mutant, total in zip(batch, sums, strict=True):
                        found[mutant.place] = self._differences(mutant, total)
                    progress(len(batch))
        return found

    def _mutant(self, place: int, variant: Variant) -> _Mutant:
        return _Mutant(place, self._in_order(variant.applied(self._wild)), self._first_change(variant))

    def _in_order(self, tokens: Tokens) -> Tokens:
        """The residues of a protein in the order in which they are read."""
        return np.ascontiguousarray(tokens[::-1]) if self._is_reverse else tokens

    def _first_change(self, variant: Variant) -> int:
        """The number of residues that a variant and the wild type share before its first change is read."""
        return len(self._wild) - variant.edits[-1].end if self._is_reverse else variant.first

    def _groups(self, mutants: list[_Mutant]) -> Iterator[list[_Mutant]]:
        """Mutants whose first changes are near each other, at most as many starts as states may be held."""
        held = min(_SPAN, self._max_states())
        group: list[_Mutant] = []
        starts: set[int] = set()
        for mutant in mutants:
            is_far = bool(group) and mutant.first - group[0].first >= _SPAN
            if is_far or len(starts | {mutant.first}) > held or (group and self._deterministic):
                yield group
                group, starts = [], set()
            group.append(mutant)
            starts.add(mutant.first)
        if group:
            yield group

    def _batches(
        self, main: _WildState, group: list[_Mutant]
    ) -> Iterator[tuple[list[_Mutant], CausalState, NDArray[np.int64]]]:
        """Batches of a group, each with copies of the state and the number of residues that these have read."""
        if self._deterministic:
            # The bits of a state depend on the steps by which it came about.
            main.read_to(group[0].first - group[0].first % _GRID, _GRID)
            yield group, main.state.select([0]), np.array([main.read])
            return
        starts = sorted({mutant.first for mutant in group})
        main.read_to(starts[0], self._chunk)
        states = main.state.select([0] * len(starts))
        tokens, borders = inference.pack([self._tokens[starts[0] : start] for start in starts])
        if len(tokens):
            states.advance(tokens, borders, _NO_ROWS)
        # Short suffixes count for what their copy of the state takes.
        least = max(1, self._budget // self._max_states())
        for batch in inference.in_batches(group, lambda mutant: max(mutant.size, least), self._budget):
            yield batch, states.select([starts.index(m.first) for m in batch]), np.array([m.first for m in batch])

    def _read(self, state: CausalState, batch: list[_Mutant], starts: NDArray[np.int64]) -> list[float]:
        """Log-likelihoods of the residues of each mutant from its first change on."""
        sums = [[self._first(mutant)] for mutant in batch]
        # The last residue is predicted and not read; one that follows no change is not scored again.
        parts = [mutant.tokens[start:-1] for mutant, start in zip(batch, starts, strict=True)]
        longest, total = max(map(len, parts)), sum(map(len, parts))
        step = max(1, longest) if total <= max(self._budget, self._chunk) else self._chunk
        for at in range(0, longest, step):
            pieces = [part[at : at + step] for part in parts]
            tokens, borders = inference.pack(pieces)
            after = [start + at + 1 for start in starts]
            follow = [m.tokens[a : a + len(x)] for m, a, x in zip(batch, after, pieces, strict=True)]
            values = state.advance(tokens, borders, targets=np.concatenate(follow))
            for i, (mutant, follows) in enumerate(zip(batch, follow, strict=True)):
                counts = _is_scored(follows) & (np.arange(after[i], after[i] + len(follows)) > mutant.first)
                sums[i].append(math.fsum(values[borders[i] : borders[i + 1]][counts]))
        return [math.fsum(values) for values in sums]

    def _first(self, mutant: _Mutant) -> float:
        """The first residue that differs is predicted by the wild type's prefix."""
        if mutant.first >= len(mutant.tokens) or not _is_scored(mutant.tokens[mutant.first : mutant.first + 1])[0]:
            return 0.0
        return float(self._rows[mutant.first, mutant.tokens[mutant.first]])

    def _differences(self, mutant: _Mutant, total: float) -> tuple[float, float]:
        before = float(self._from[0] - self._from[mutant.first])
        count = int(self._scored_before[mutant.first] + _is_scored(mutant.tokens[mutant.first :]).sum())
        whole = int(self._scored_before[-1])
        if not count or not whole:
            return math.nan, math.nan
        return total - float(self._from[mutant.first]), (before + total) / count - float(self._from[0]) / whole

    def _max_states(self) -> int:
        """Copies of the state that memory is meant for."""
        c, item = self._engine.config, np.dtype(self._engine.dtype).itemsize
        # At most two features for each random direction; with exact attention all keys and values.
        per_head = 2 * len(self._wild) * c.head_dim
        if c.attention != "exact":
            per_head = 2 * c.num_features * (2 + c.head_dim)
        return max(1, STATE_BYTES // (c.num_layers * c.num_heads * per_head * item))


class BothReadings:
    """The mean of the forward and the reverse reading."""

    name = "full-both"
    has_lengths = True

    def __init__(self, engine: Engine, wild_type: WildType, batch_tokens: int, deterministic: bool) -> None:
        self._readings = [
            FullScorer(engine, wild_type, batch_tokens, deterministic, direction)
            for direction in ("forward", "reverse")
        ]

    def tokens_read(self, variant: Variant) -> int:
        """About how many residues are read for a variant, in both readings."""
        return sum(reading.tokens_read(variant) for reading in self._readings)

    def check(self, variant: Variant) -> None:
        """Every variant has a score."""

    def score(self, variants: Sequence[Variant], progress: Progress = no_progress) -> NDArray[np.float64]:
        """As `FullScorer.score`."""
        # A variant is done when it has been read twice.
        forward = self._readings[0].score(variants)
        return 0.5 * (forward + self._readings[1].score(variants, progress))


class _Mutant:
    """A variant's sequence as it is read, its place among the variants, and the index of its first change."""

    __slots__ = ("first", "place", "size", "tokens")

    def __init__(self, place: int, tokens: Tokens, first: int) -> None:
        self.place, self.tokens, self.first = place, tokens, first
        self.size = len(tokens) - first


class _WildState:
    """The state of the wild type after the first token and `read` residues; it only moves on."""

    def __init__(self, engine: Engine, residues: Tokens, start: int) -> None:
        self._residues, self.read = residues, 0
        self.state = engine.empty_state()
        self.state.advance(np.array([start], np.uint8), np.array([0, 1]), _NO_ROWS)

    def read_to(self, count: int, step: int) -> None:
        """Read on until `count` residues have been read, at most `step` at a time."""
        borders = [*range(self.read, count, step), count]
        for start, end in itertools.pairwise(borders):
            self.state.advance(self._residues[start:end], np.array([0, end - start]), _NO_ROWS)
        self.read = count


def _is_scored(tokens: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (tokens >= FIRST_RESIDUE) & (tokens <= LAST_SCORED)
