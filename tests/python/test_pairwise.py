"""Pairwise models: energies against their definition, and fits of planted families."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from protperf import pairwise
from protperf.errors import ConfigError, DtypeError, OutOfMemory, ShapeError

GAP = 20


def planted(num_rows: int, num_columns: int = 7) -> np.ndarray:
    """Rows of four kinds of residues: column 4 follows column 1 in four rows of five, some residues are gaps."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 4, (num_rows, num_columns), np.uint8)
    codes[:, 4] = np.where(rng.random(num_rows) < 0.8, (codes[:, 1] + 2) % 4, codes[:, 4])
    codes[rng.random(codes.shape) < 0.05] = GAP
    return codes


@pytest.fixture(scope="module")
def family() -> np.ndarray:
    return planted(2000)


@pytest.fixture(scope="module")
def model(family: np.ndarray) -> pairwise.Pairwise:
    return pairwise.fit(family, np.ones(len(family)))


@pytest.fixture(scope="module")
def any_model() -> pairwise.Pairwise:
    """Numbers that no fit gives, so that no term is small."""
    rng = np.random.default_rng(0)
    half = np.triu(rng.normal(size=(5, 5, 20, 20)).transpose(2, 3, 0, 1), 1).transpose(2, 3, 0, 1)
    couplings = half + half.transpose(1, 0, 3, 2)
    return pairwise.Pairwise(rng.normal(size=(5, 20)).astype(np.float32), couplings.astype(np.float32))


def energy(model: pairwise.Pairwise, codes: np.ndarray) -> float:
    known = np.flatnonzero(codes < GAP)
    pairs = sum(float(model.couplings[i, j, codes[i], codes[j]]) for i, j in itertools.combinations(known, 2))
    return pairs + sum(float(model.fields[i, codes[i]]) for i in known)


def test_energy_differences_are_those_of_whole_energies(any_model: pairwise.Pairwise) -> None:
    rng = np.random.default_rng(1)
    for number in (0, 1, 2, 3, 5):
        for _ in range(5):
            codes = rng.integers(0, GAP + 1, 5, np.uint8)
            columns = rng.permutation(5)[:number]
            new = rng.integers(0, GAP + 1, number)
            changed = codes.copy()
            changed[columns] = new
            wanted = energy(any_model, changed) - energy(any_model, codes)
            assert any_model.energy_difference(codes, columns, new) == pytest.approx(wanted, abs=1e-5)


def test_conditionals_are_those_of_whole_energies(any_model: pairwise.Pairwise) -> None:
    codes = np.array([3, GAP, 0, 19, 7], np.uint8)
    found = any_model.conditionals(codes)
    assert np.exp(found).sum(1) == pytest.approx(np.ones(5))
    for column in range(5):
        energies = []
        for residue in range(20):
            changed = codes.copy()
            changed[column] = residue
            energies.append(energy(any_model, changed))
        assert np.diff(found[column]) == pytest.approx(np.diff(energies), abs=1e-5)
        for given, hidden in (("before", slice(column + 1, None)), ("after", slice(column))):
            one_side = codes.copy()
            one_side[hidden] = GAP
            known = any_model.conditionals(one_side)[column]
            assert any_model.conditionals(codes, given)[column] == pytest.approx(known, abs=1e-12)


def test_a_fit_finds_the_planted_pair_and_keeps_the_gauge(model: pairwise.Pairwise) -> None:
    contacts = model.contacts()
    assert np.unravel_index(contacts.argmax(), contacts.shape) == (1, 4)
    assert contacts[1, 4] > 5 * np.delete(contacts[1], 4).max()
    assert (model.couplings == model.couplings.transpose(1, 0, 3, 2)).all()
    assert not model.couplings[np.arange(7), np.arange(7)].any()
    for axis in (2, 3):
        assert np.abs(model.couplings.mean(axis)).max() < 1e-6
    assert np.abs(model.fields.mean(1)).max() < 1e-6


def test_a_fit_predicts_what_the_rows_show(family: np.ndarray, model: pairwise.Pairwise) -> None:
    whole = family[(family < GAP).all(1)]
    predicted = np.exp([model.conditionals(row)[4] for row in whole])
    for given in range(4):
        rows = whole[:, 1] == given
        seen = np.bincount(whole[rows, 4], minlength=20) / rows.sum()
        assert predicted[rows].mean(0) == pytest.approx(seen, abs=0.03)


def test_weights_stand_for_repeated_rows() -> None:
    codes = planted(150)
    weights = np.arange(150) % 3
    weighted = pairwise.fit(codes, weights, coupling_penalty=5.0)
    repeated = pairwise.fit(codes.repeat(weights, 0), np.ones(weights.sum()), coupling_penalty=5.0)
    # Both are fitted to within a few thousandths.
    assert np.abs(weighted.couplings - repeated.couplings).max() < 5e-3
    assert np.abs(weighted.couplings).max() > 0.05


def test_threads_change_no_bit_and_progress_counts_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, found = planted(200, 40), []
    for threads in ("1", "3"):
        monkeypatch.setenv("PROTPERF_NUM_THREADS", threads)
        done: list[int] = []
        found.append(pairwise.fit(codes, np.ones(200), progress=done.append))
        assert sum(done) == 40
    assert (found[0].fields == found[1].fields).all()
    assert (found[0].couplings == found[1].couplings).all()


@pytest.mark.parametrize(("num_rows", "num_columns"), [(0, 3), (1, 1), (1, 5), (40, 1)])
def test_alignments_that_say_little_give_finite_models(num_rows: int, num_columns: int) -> None:
    codes = np.full((num_rows, num_columns), 5, np.uint8)
    found = pairwise.fit(codes, np.ones(num_rows))
    assert np.isfinite(found.fields).all()
    assert np.isfinite(found.couplings).all()
    assert num_rows == 0 or (found.fields.argmax(1) == 5).all()
    assert np.isfinite(found.contacts()).all()


def test_wrong_arguments_are_refused_by_name() -> None:
    codes, weights = planted(20), np.ones(20)
    for wrong in (codes[0], codes[:, :0], codes[:, ::2]):
        with pytest.raises(ShapeError, match="codes"):
            pairwise.fit(wrong, weights)
    with pytest.raises(ShapeError, match="weights"):
        pairwise.fit(codes, weights[1:])
    with pytest.raises(DtypeError, match="codes"):
        pairwise.fit(codes.astype(np.int64), weights)
    with pytest.raises(ConfigError, match="weights has -1 at row 0"):
        pairwise.fit(codes, -weights)
    with pytest.raises(ConfigError, match="field_penalty"):
        pairwise.fit(codes, weights, field_penalty=-1.0)
    with pytest.raises(ConfigError, match="coupling_penalty"):
        pairwise.fit(codes, weights, coupling_penalty=float("nan"))
    with pytest.raises(OutOfMemory, match=r"couplings of 2000000 columns need \d+\.\d GiB"):
        pairwise.fit(np.zeros((1, 2_000_000), np.uint8), np.ones(1))
