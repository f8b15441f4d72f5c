"""How well scores agree with measured values: Spearman, AUC, NDCG and MCC, each with a bootstrap standard error.

The definitions are those of ProteinGym: AUC of the scores against the measured classes; NDCG of the top tenth by score,
whose gains are the measured values scaled to 0..1; MCC of the measured classes with the better half by score. The
standard error is the standard deviation of a figure over samples of the variants, drawn with replacement.

A sample is a count for each variant, so that nothing is sorted again: ranks, sums and orders of a sample follow from
the counts in the order of the whole.

Source: Notin et al. 2023, ProteinGym, doi:10.1101/2023.12.07.570727; Efron 1979, doi:10.1214/aos/1176344552.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protperf.errors import ShapeError

TOP = 0.1
"""Share of the variants that NDCG looks at."""

Floats = NDArray[np.float64]
Counts = NDArray[np.float64]
"""How often a sample has each variant: whole numbers, as floats because their sums of products are then fast."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure and its bootstrap standard error; NaN where it is not defined."""

    value: float
    error: float

    def __str__(self) -> str:
        return "undefined" if math.isnan(self.value) else f"{self.value:.3f} ± {self.error:.3f}"


@dataclass(frozen=True, slots=True)
class Metrics:
    """Agreement of scores with measured values.

    Attributes:
        num_variants: those with a score and a measured value; the figures are of these.
        num_missing: the others.
    """

    num_variants: int
    num_missing: int
    spearman: Figure
    auc: Figure
    ndcg: Figure
    mcc: Figure

    def __str__(self) -> str:
        figures = f"Spearman {self.spearman}, AUC {self.auc}, NDCG {self.ndcg}, MCC {self.mcc}"
        missing = f" ({self.num_missing} more without a score or a measured value)" if self.num_missing else ""
        return f"{self.num_variants} variants{missing}: {figures}"


def compare(
    scores: ArrayLike, labels: ArrayLike, classes: ArrayLike | None = None, *, resamples: int = 200, seed: int = 42
) -> Metrics:
    """Compare scores with measured values, for both of which higher means fitter.

    Args:
        scores, labels: shapes [num_variants]; rows where either is NaN are left out.
        classes: measured classes, 1 for fit and 0 for unfit [num_variants], for AUC and MCC; NaN is left out of these.
            Default: the labels from their median on are fit.
        resamples: bootstrap samples.

    Raises:
        ShapeError: different numbers of scores, labels and classes.
    """
    s, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    c = None if classes is None else np.asarray(classes, np.float64)
    if s.ndim != 1 or y.shape != s.shape or (c is not None and c.shape != s.shape):
        shapes = f"scores {s.shape}, labels {y.shape}, classes {None if c is None else c.shape}"
        raise ShapeError(f"scores, labels and classes need one axis of one length; they have {shapes}")
    known = ~(np.isnan(s) | np.isnan(y))
    s, y = s[known], y[known]
    c = c[known] if c is not None else (y >= np.median(y)).astype(np.float64) if len(y) else y
    figures = _figures(s, y, c)
    rng = np.random.default_rng(seed)
    samples = [_sample(rng, len(s)) for _ in range(resamples)] if len(s) > 1 else []
    found = {name: _figure(figure, len(s), samples) for name, figure in figures.items()}
    return Metrics(len(s), int((~known).sum()), **found)


def spearman(scores: Floats, labels: Floats) -> Callable[[Counts], float]:
    """Correlation of the ranks, ties at their mean rank, as a function of the counts of a sample."""
    ranks_of = [_ranks(values) for values in (scores, labels)]

    def figure(counts: Counts) -> float:
        x, y = (ranks(counts) for ranks in ranks_of)
        total = counts.sum()
        x, y = x - _dot(counts, x) / total, y - _dot(counts, y) / total
        spread = math.sqrt(_dot(counts, x * x) * _dot(counts, y * y))
        return _dot(counts, x * y) / spread if spread > 0 else math.nan

    return figure


def auc(scores: Floats, classes: Floats) -> Callable[[Counts], float]:
    """Probability that a fit variant has a higher score than an unfit one, ties counting one half."""
    ranks = _ranks(scores)
    fit, unfit = (classes == 1).astype(np.float64), (classes == 0).astype(np.float64)

    def figure(counts: Counts) -> float:
        # Of the rows that have a class.
        rated = counts * (fit + unfit)
        num_fit, num_unfit = _dot(rated, fit), _dot(rated, unfit)
        if not num_fit or not num_unfit:
            return math.nan
        above = _dot(rated * fit, ranks(rated)) - num_fit * (num_fit + 1) / 2
        return above / (num_fit * num_unfit)

    return figure


def ndcg(scores: Floats, labels: Floats) -> Callable[[Counts], float]:
    """Discounted gain of the top tenth by score, over that of the best order. Ties keep the order of the rows."""
    by_score, by_label = (np.argsort(-values, kind="stable") for values in (scores, labels))

    def figure(counts: Counts) -> float:
        present = labels[counts > 0]
        top = int(counts.sum() * TOP)
        if not top or present.min() == present.max():
            return math.nan
        gains = (labels - present.min()) / (present.max() - present.min())
        discounts = 1 / np.log2(np.arange(top) + 2)
        ours, best = (_dot(gains[_first(order, counts, top)], discounts) for order in (by_score, by_label))
        return ours / best

    return figure


def _first(order: NDArray[np.int64], counts: Counts, top: int) -> NDArray[np.int64]:
    """The first rows of a sample in an order, each as often as it counts."""
    times = counts[order]
    end = int(np.searchsorted(np.cumsum(times), top)) + 1
    return np.repeat(order[:end], times[:end].astype(np.int64))[:top]


def mcc(scores: Floats, classes: Floats) -> Callable[[Counts], float]:
    """Matthews' correlation of the measured classes with scores of at least the median."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    fit, unfit = (classes == 1).astype(np.float64), (classes == 0).astype(np.float64)

    def figure(counts: Counts) -> float:
        if not counts.sum():
            return math.nan
        cut = _median(ordered, counts[order])
        called = counts * (scores >= cut)
        tp, fp = _dot(called, fit), _dot(called, unfit)
        fn, tn = _dot(counts, fit) - tp, _dot(counts, unfit) - fp
        spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
        return (tp * tn - fp * fn) / spread if spread > 0 else math.nan

    return figure


def _figures(s: Floats, y: Floats, c: Floats) -> dict[str, Callable[[Counts], float]]:
    return {"spearman": spearman(s, y), "auc": auc(s, c), "ndcg": ndcg(s, y), "mcc": mcc(s, c)}


def _figure(figure: Callable[[Counts], float], count: int, samples: list[Counts]) -> Figure:
    if not samples:
        return Figure(math.nan, math.nan)
    values = np.array([figure(sample) for sample in samples])
    # A sample in which a figure is not defined, such as one of a single class, says nothing of its spread.
    values = values[~np.isnan(values)]
    return Figure(figure(np.ones(count)), float(values.std(ddof=1)) if len(values) > 1 else math.nan)


def _dot(x: Floats, y: Floats) -> float:
    # Not BLAS, whose sums depend on its number of threads.
    return float((x * y).sum())


def _sample(rng: np.random.Generator, count: int) -> Counts:
    return np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)


def _ranks(values: Floats) -> Callable[[Counts], Any]:
    """Mean ranks from 1 of each row [num_variants] in a sample: ties share the mean of the ranks that they take."""
    _, groups = np.unique(values, return_inverse=True)

    def ranks(counts: Counts) -> Any:
        sizes = np.bincount(groups, weights=counts)
        return (np.cumsum(sizes) - (sizes - 1) / 2)[groups]

    return ranks


def _median(ordered: Floats, counts: Counts) -> float:
    """Median of values in rising order, each there as often as it counts."""
    ends = np.cumsum(counts)
    lower, upper = np.searchsorted(ends, [(ends[-1] + 1) // 2, ends[-1] // 2 + 1])
    return float((ordered[lower] + ordered[upper]) / 2)
