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
