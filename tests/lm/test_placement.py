"""Placing sequences in a profile, against the recurrence written out cell by cell and the score of what was placed."""

from __future__ import annotations

import itertools

import numpy as np

from protperf.lm.alignment.placement import EXTEND, OPEN, place


def best_score(letters: np.ndarray, scores: np.ndarray) -> float:
    """The score of the best alignment with free ends, every cell and every gap tried."""
    count, width = len(scores), len(letters)
    best = np.zeros((count + 1, width + 1))
    for column in range(1, count + 1):
        base = np.zeros(width + 1)
        for i in range(1, width + 1):
            deletions = [best[column - k, i] - cost(k) for k in range(1, column + 1)]
            base[i] = max(best[column - 1, i - 1] + scores[column - 1, letters[i - 1]], *deletions)
        for i in range(width + 1):
            best[column, i] = max([base[i]] + [base[k] - cost(i - k) for k in range(i)])
    return float(max(best[-1].max(), best[:, -1].max()))


def columns_of(letters: np.ndarray, scores: np.ndarray) -> list[int]:
    (placed,) = place([letters], scores)
    return placed.columns.tolist()


def cost(length: int) -> float:
    return OPEN + (length - 1) * EXTEND if length else 0.0


def score_of(letters: np.ndarray, scores: np.ndarray, columns: np.ndarray) -> float:
    """The score of a placement; ends that are free cost nothing."""
    pairs = [(i, int(column)) for i, column in enumerate(columns) if column >= 0]
    total = sum(float(scores[column, letters[i]]) for i, column in pairs)
    for (i, column), (other, next_column) in itertools.pairwise(pairs):
        total -= cost(other - i - 1) + cost(next_column - column - 1)
    if pairs:
        before, after = pairs[0], (len(letters) - 1 - pairs[-1][0], len(scores) - 1 - pairs[-1][1])
        total -= cost(min(before)) + cost(min(after))
    return total


def test_placements_have_the_best_score_and_do_not_depend_on_other_sequences() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        scores = rng.normal(-0.5, 2.5, (int(rng.integers(1, 12)), 5)).astype(np.float32)
        sequences = [rng.integers(0, 5, int(rng.integers(0, 14))).astype(np.uint8) for _ in range(4)]
        for letters, placed in zip(sequences, place(sequences, scores), strict=True):
            columns = placed.columns
            assert columns.shape == letters.shape
            assert (np.diff(columns[columns >= 0]) > 0).all()
            assert abs(score_of(letters, scores, columns) - best_score(letters, scores)) < 1e-4
            assert abs(placed.score - best_score(letters, scores)) < 1e-4
            (alone,) = place([letters], scores)
            assert (alone.columns == columns).all()
            assert alone.score == placed.score


def test_a_domain_is_found_in_a_longer_protein_and_a_fragment_in_the_domain() -> None:
    scores = np.where(np.eye(20)[np.arange(20)] > 0, 3.0, -2.0).astype(np.float32)
    domain = np.arange(20, dtype=np.uint8)
    longer = np.concatenate([np.full(7, 3, np.uint8), domain, np.full(4, 9, np.uint8)])
    assert columns_of(longer, scores) == [-1] * 7 + list(range(20)) + [-1] * 4
    assert columns_of(domain[6:15], scores) == list(range(6, 15))
    without = np.concatenate([domain[:8], domain[11:]])
    assert columns_of(without, scores) == [*range(8), *range(11, 20)]
