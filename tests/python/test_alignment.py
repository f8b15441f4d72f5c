"""Weights of the rows of an alignment, against a comparison of all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from protperf import alignment
from protperf.errors import ConfigError, DtypeError, ShapeError


def rows(num_rows: int, num_columns: int) -> np.ndarray:
    """Rows that keep between none and all of an ancestor's codes."""
    rng = np.random.default_rng(num_columns)
    ancestor, other = rng.integers(0, 21, (2, num_rows, num_columns), np.uint8)
    return np.where(rng.random((num_rows, num_columns)) < rng.random((num_rows, 1)), ancestor[:1], other)


@pytest.mark.parametrize("identity", [0.5, 0.8, 1.0])
def test_weights_are_those_of_all_pairs_for_any_number_of_threads(
    identity: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = rows(150, 263)
    wanted = 1 / ((codes[:, None] == codes).mean(2) >= identity).sum(1)
    assert identity == 1 or wanted.min() < 0.2
    for threads in ("1", "3"):
        monkeypatch.setenv("PROTPERF_NUM_THREADS", threads)
        assert alignment.row_weights(codes, identity).tolist() == wanted.tolist()


def test_equal_rows_count_as_one_and_an_empty_alignment_has_no_weights() -> None:
    assert alignment.row_weights(np.zeros((4, 7), np.uint8)).tolist() == [0.25] * 4
    assert alignment.row_weights(np.empty((0, 7), np.uint8)).tolist() == []


def test_wrong_arguments_are_refused_by_name() -> None:
    codes = rows(5, 8)
    for identity in (0, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="identity is"):
            alignment.row_weights(codes, identity)
    for wrong in (codes[0], codes[:, :0], codes.T):
        with pytest.raises(ShapeError, match="codes"):
            alignment.row_weights(wrong)
    with pytest.raises(DtypeError, match="codes"):
        alignment.row_weights(codes.astype(np.int64))


def placed(sequences: list[np.ndarray], scores: np.ndarray) -> list[tuple[list[int], float]]:
    found = alignment.place(sequences, scores, gap_open=3.0, gap_extend=0.5)
    return [(one.columns.tolist(), one.score) for one in found]


def test_places_are_the_same_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(-0.5, 2.5, (40, 21)).astype(np.float32)
    sequences = [rng.integers(0, 21, int(size), np.uint8) for size in rng.integers(0, 90, 70)]
    monkeypatch.setenv("PROTPERF_NUM_THREADS", "1")
    wanted = placed(sequences, scores)
    assert wanted == [placed([sequence], scores)[0] for sequence in sequences]
    monkeypatch.setenv("PROTPERF_NUM_THREADS", "3")
    assert placed(sequences, scores) == wanted
    assert placed(sequences, np.asfortranarray(scores)) == wanted


def test_a_gap_costs_what_was_said_and_free_ends_nothing() -> None:
    scores = np.where(np.eye(8) > 0, 4.0, -9.0).astype(np.float32)
    whole = np.arange(8, dtype=np.uint8)
    assert placed([whole], scores) == [(list(range(8)), 32.0)]
    assert placed([whole[2:5]], scores) == [([2, 3, 4], 12.0)]
    without = np.delete(whole, [3, 4])
    assert placed([without], scores) == [([0, 1, 2, 5, 6, 7], 24.0 - 3.0 - 0.5)]
    assert placed([np.insert(whole, 4, [0, 0, 0])], scores) == [
        ([0, 1, 2, 3, -1, -1, -1, 4, 5, 6, 7], 32.0 - 3.0 - 1.0)
    ]


def test_nothing_to_place_or_to_place_it_in() -> None:
    scores = np.ones((3, 2), np.float32)
    assert placed([], scores) == []
    assert placed([np.empty(0, np.uint8)], scores) == [([], 0.0)]
    assert placed([np.zeros(2, np.uint8)], np.empty((0, 2), np.float32)) == [([-1, -1], 0.0)]


def test_sequences_and_scores_that_cannot_be_placed_are_refused_by_name() -> None:
    letters, scores = np.array([0, 2], np.uint8), np.ones((3, 2), np.float32)
    with pytest.raises(ConfigError, match="letters hold 2"):
        placed([letters], scores)
    with pytest.raises(ShapeError, match=r"scores must be \[L,K\]"):
        placed([letters], scores[0])
    with pytest.raises(DtypeError, match="scores"):
        placed([letters], scores.astype(np.float64))
