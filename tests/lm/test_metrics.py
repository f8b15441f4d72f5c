"""Figures of agreement against pandas, brute force, and sums done by hand; standard errors against theory."""

from __future__ import annotations

import math

import numpy as np
import pandas
import pytest

from protperf.errors import ShapeError
from protperf.lm.variants import metrics
from protperf.lm.variants.metrics import compare

RNG = np.random.default_rng(7)
# Coarse values, so that there are ties.
SCORES = RNG.normal(size=501).round(1)
LABELS = (SCORES + RNG.normal(size=501)).round(1)
CLASSES = (LABELS > 0.3).astype(float)
ONE = np.ones(501)


def test_spearman_is_that_of_pandas() -> None:
    frame = pandas.DataFrame({"x": SCORES, "y": LABELS})
    expected = frame.corr(method="spearman").iloc[0, 1]
    assert metrics.spearman(SCORES, LABELS)(ONE) == pytest.approx(expected, abs=1e-12)
    assert compare(SCORES, LABELS).spearman.value == pytest.approx(expected, abs=1e-12)


def test_auc_counts_pairs() -> None:
    fit, unfit = SCORES[CLASSES == 1][:, None], SCORES[CLASSES == 0][None, :]
    expected = (fit > unfit).mean() + 0.5 * (fit == unfit).mean()
    assert metrics.auc(SCORES, CLASSES)(ONE) == pytest.approx(expected, abs=1e-12)


def test_ndcg_by_hand() -> None:
    """Twenty variants, so that the top tenth is two: gains 0.5 and 1 against the best 1 and 0.9."""
    labels = np.array([0.5, 1.0, 0.9, 0.0, *[0.1] * 16])
    scores = np.array([9.0, 8.0, 7.0, 6.0, *range(-16, 0)])
    expected = (0.5 + 1.0 / math.log2(3)) / (1.0 + 0.9 / math.log2(3))
    assert metrics.ndcg(scores, labels)(np.ones(20)) == pytest.approx(expected, abs=1e-12)
    # Gains are scaled: a shift and a scale of the labels change nothing.
    assert metrics.ndcg(scores, 7 * labels - 3)(np.ones(20)) == pytest.approx(expected, abs=1e-12)


def test_mcc_by_hand() -> None:
    """Scores from their median of 3.5 on are called fit: of four, three are; of the other four, one is."""
    scores, classes = np.array([0, 1, 2, 3, 4, 5, 6, 7.0]), np.array([0, 1, 0, 0, 1, 1, 0, 1.0])
    assert metrics.mcc(scores, classes)(np.ones(8)) == pytest.approx((3 * 3 - 1 * 1) / 16)
    # With an odd number the median itself is called fit.
    assert metrics.mcc(scores[:5], classes[:5])(np.ones(5)) == pytest.approx((1 * 1 - 1 * 2) / math.sqrt(3 * 2 * 3 * 2))


@pytest.mark.parametrize("name", ["spearman", "auc", "ndcg", "mcc"])
def test_a_sample_given_by_counts_is_the_sample_written_out(name: str) -> None:
    figure = getattr(metrics, name)
    second = CLASSES if name in ("auc", "mcc") else LABELS
    for seed in range(5):
        drawn = np.random.default_rng(seed).integers(0, 501, 501)
        counts = np.bincount(drawn, minlength=501).astype(float)
        written = np.sort(drawn)
        expected = figure(SCORES[written], second[written])(ONE)
        assert figure(SCORES, second)(counts) == pytest.approx(expected, abs=1e-12)


def test_standard_errors_are_those_of_theory() -> None:
    """Of independent values the rank correlation scatters by 1/sqrt(n - 1), and AUC as Mann and Whitney's U does."""
    rng = np.random.default_rng(3)
    n = 2000
    found = compare(rng.normal(size=n), rng.normal(size=n), (rng.random(n) < 0.5).astype(float), resamples=400)
    # 400 samples know a spread to about 4 %.
    assert found.spearman.error == pytest.approx(1 / math.sqrt(n - 1), rel=0.15)
    assert found.auc.error == pytest.approx(math.sqrt((n + 1) / (12 * (n / 2) ** 2)), rel=0.15)
    assert abs(found.spearman.value) < 4 * found.spearman.error


def test_what_is_missing_is_left_out_and_counted() -> None:
    scores, labels, classes = SCORES.copy(), LABELS.copy(), CLASSES.copy()
    scores[3] = labels[5] = labels[3] = classes[9] = math.nan
    found = compare(scores, labels, classes)
    kept = np.delete(np.arange(501), [3, 5])
    assert (found.num_variants, found.num_missing) == (499, 2)
    assert found.spearman.value == compare(SCORES[kept], LABELS[kept]).spearman.value
    rated = np.delete(np.arange(501), [3, 5, 9])
    assert found.auc.value == pytest.approx(compare(SCORES[rated], LABELS[rated], CLASSES[rated]).auc.value)
    assert "499 variants (2 more without a score or a measured value): Spearman 0." in str(found)


def test_without_classes_the_labels_are_split_at_their_median() -> None:
    split = np.greater_equal(LABELS, np.median(LABELS)).astype(float)
    assert compare(SCORES, LABELS) == compare(SCORES, LABELS, split)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_variants_have_no_figures(count: int) -> None:
    found = compare(SCORES[:count], LABELS[:count])
    assert all(math.isnan(x.value) for x in (found.spearman, found.auc, found.ndcg, found.mcc))
    assert "undefined" in str(found)


def test_values_that_do_not_vary_have_no_figures() -> None:
    found = compare(np.zeros(50), LABELS[:50])
    assert math.isnan(found.spearman.value)
    assert found.auc.value == 0.5
    assert math.isnan(compare(SCORES, LABELS, np.ones(501)).auc.value)
    assert math.isnan(compare(SCORES, np.ones(501)).ndcg.value)


def test_the_seed_decides_the_errors_and_no_figure() -> None:
    one, same, other = (compare(SCORES, LABELS, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.spearman.value == other.spearman.value
    assert one.spearman.error != other.spearman.error


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match="one length"):
        compare([1.0, 2.0], [1.0])
    with pytest.raises(ShapeError):
        compare(np.ones((2, 2)), np.ones((2, 2)))
