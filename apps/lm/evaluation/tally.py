"""Sums over residues that come out the same in any order, and the rows that they make.

Nats are added up as whole multiples of 2^-40, so neither the order of the sequences nor the size of a batch changes a
bit of a sum.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD
from protperf.lm.evaluation.clusters import Clusters

NUM_BINS = 10
"""Bins of confidence, of equal width from 0 to 1."""
LENGTH_BORDERS = (64, 128, 256, 512, 1024, 2048)
"""Lengths at which a new group begins."""
_UNIT = 2.0**-40


@dataclass(frozen=True, slots=True)
class EvalRow:
    """Figures of a set or of a group of it.

    `mode` is `causal` (each residue given those before it) or `masked`; `by` says what the groups are, `all` for the
    whole set. A cluster of relatives is named by the id of its first sequence in the set. `ppl` is the exponential of
    the mean nats per residue; `accuracy` the share of residues that were the most probable of the twenty;
    `confidence` the mean probability of the most probable one; `ece` the expected calibration error over ten bins.
    `ppl_family`, `ppl_ngram` and `ppl_unigram` are those of a model of the family, of n-grams and of residue
    frequencies, NaN where there is none; `ppl_uniform` is 20.
    """

    set: str
    mode: str
    by: str
    group: str
    sequences: int
    residues: int
    ppl: float
    accuracy: float
    confidence: float
    ece: float
    ppl_family: float
    ppl_ngram: float
    ppl_unigram: float
    ppl_uniform: float


@dataclass(slots=True)
class Tally:
    """Sums over some residues: their number by kind, nats, hits, and by bin of confidence number, hits and sum."""

    sequences: int = 0
    units: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_STANDARD, np.int64))
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    hits: NDArray[np.int64] = field(default_factory=lambda: np.zeros(NUM_BINS, np.int64))
    confidence_units: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    baseline_units: list[int | None] = field(default_factory=lambda: [0, 0])

    def add(self, facts: Predictions, chosen: NDArray[np.bool_] | slice = slice(None)) -> None:
        """Add some residues of one sequence."""
        residues = facts.residues[chosen]
        if not len(residues):
            return
        self.sequences += 1
        self.units += _units(facts.nats[chosen])
        self.counts += np.bincount(residues, minlength=NUM_STANDARD)
        for which, nats in enumerate(facts.baseline_nats[chosen].T):
            known = self.baseline_units[which]
            # A baseline that is not there has no nats.
            self.baseline_units[which] = None if known is None or np.isnan(nats[0]) else known + _units(nats)
        confidence, hits = facts.confidence[chosen], facts.hits[chosen]
        place = bins_of(confidence)
        self.bins += np.bincount(place, minlength=NUM_BINS)
        self.hits += np.bincount(place[hits], minlength=NUM_BINS)
        for one in np.unique(place).tolist():
            self.confidence_units[one] += _units(confidence[place == one])

    @property
    def perplexity(self) -> float:
        """The exponential of the mean nats per residue; NaN of none."""
        count = int(self.counts.sum())
        return _exp(self.units * _UNIT / count) if count else math.nan

    def row(self, where: tuple[str, str, str, str], frequencies: NDArray[np.float64]) -> EvalRow:
        """The figures; `where` is set, mode, by and group."""
        count = int(self.counts.sum())
        if not count:
            nan = math.nan
            return EvalRow(*where, self.sequences, 0, nan, nan, nan, nan, nan, nan, nan, float(NUM_STANDARD))
        sums = np.array(self.confidence_units) * _UNIT
        error = float(np.abs(sums - self.hits).sum()) / count
        unigram = _exp(-float(self.counts @ np.log(frequencies)) / count)
        accuracy, confidence = int(self.hits.sum()) / count, float(sums.sum()) / count
        ngram, family = (math.nan if units is None else _exp(units * _UNIT / count) for units in self.baseline_units)
        figures = (self.perplexity, accuracy, confidence, error)
        return EvalRow(*where, self.sequences, count, *figures, family, ngram, unigram, float(NUM_STANDARD))


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model said of residues of one sequence, of the twenty [n] each: index, nats, probability of the most
    probable one, and whether that is the residue; and the nats of baselines [n, 2].

    `place` is that of the sequence in its set, `length` its number of residues.
    """

    place: int
    length: int
    residues: NDArray[np.int64]
    nats: NDArray[np.float64]
    confidence: NDArray[np.float64]
    hits: NDArray[np.bool_]
    baseline_nats: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        place: int,
        length: int,
        log_probs: NDArray[np.floating],
        tokens: NDArray[np.uint8],
        baseline_nats: NDArray[np.float64],
    ) -> Predictions:
        """From log-probabilities [n, vocabulary] of tokens [n], without those that are not of the twenty."""
        kept = (tokens >= FIRST_RESIDUE) & (tokens < FIRST_RESIDUE + NUM_STANDARD)
        residues = tokens[kept].astype(np.int64) - FIRST_RESIDUE
        standard = log_probs[kept, FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD].astype(np.float64)
        nats = -standard[np.arange(len(residues)), residues]
        best = standard.argmax(1) if len(residues) else residues
        confidence = np.exp(standard[np.arange(len(residues)), best])
        return cls(place, length, residues, nats, np.minimum(confidence, 1.0), best == residues, baseline_nats[kept])


class Tallies:
    """The sums of one set in one mode: of all of it, and of each group that was asked for."""

    def __init__(self, by: tuple[str, ...], clusters: Clusters | None = None) -> None:
        """Nothing yet; `clusters` are those of the set if they are asked for."""
        self._by = tuple(dict.fromkeys(by))
        self.whole = Tally()
        self._clusters, self._relatives = clusters, defaultdict[int, Tally](Tally)
        self._lengths = [Tally() for _ in range(len(LENGTH_BORDERS) + 1)]
        self._residues = [Tally() for _ in range(NUM_STANDARD)]
        self._bins = [Tally() for _ in range(NUM_BINS)]

    def add(self, facts: Predictions) -> None:
        """Add what was said of one sequence."""
        self.whole.add(facts)
        if "length" in self._by:
            self._lengths[int(np.searchsorted(LENGTH_BORDERS, facts.length, side="right"))].add(facts)
        if "residue" in self._by:
            for residue in np.unique(facts.residues).tolist():
                self._residues[residue].add(facts, facts.residues == residue)
        if self._clusters is not None:
            self._relatives[int(self._clusters.of[facts.place])].add(facts)
        if "calibration" in self._by:
            places = bins_of(facts.confidence)
            for place in np.unique(places).tolist():
                self._bins[place].add(facts, places == place)

    def rows(self, name: str, mode: str, frequencies: NDArray[np.float64]) -> Iterator[EvalRow]:
        """The rows: of all, then of the groups that hold anything, in the order in which they were asked for."""
        yield self.whole.row((name, mode, "all", "all"), frequencies)
        for by in self._by:
            for group, tally in self._groups(by):
                if tally.sequences:
                    yield tally.row((name, mode, by, group), frequencies)

    def _groups(self, by: str) -> Iterator[tuple[str, Tally]]:
        if by == "residue":
            yield from zip(io.VOCABULARY[FIRST_RESIDUE:], self._residues, strict=False)
        elif by == "length":
            yield from zip(length_groups(), self._lengths, strict=True)
        elif by == "cluster" and self._clusters is not None:
            # The largest first.
            order = sorted(self._relatives, key=lambda first: (-self._relatives[first].sequences, first))
            yield from ((self._clusters.ids[first], self._relatives[first]) for first in order)
        elif by == "calibration":
            names = [f"{one / NUM_BINS:g}-{(one + 1) / NUM_BINS:g}" for one in range(NUM_BINS)]
            yield from zip(names, self._bins, strict=True)


def length_groups() -> list[str]:
    """Names of the groups of lengths, in their order."""
    borders = (1, *LENGTH_BORDERS)
    return [*(f"{low}-{high - 1}" for low, high in itertools.pairwise(borders)), f"{borders[-1]}-"]


def bins_of(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each probability."""
    return np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)


def _units(values: NDArray[np.float64]) -> int:
    return sum(np.rint(values / _UNIT).astype(np.int64).tolist())


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
