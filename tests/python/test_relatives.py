"""Relatives in sets of sequences: against an alignment of all with all, on planted families."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from Bio import Align
from Bio.Align import substitution_matrices

from protperf import io, relatives
from protperf.errors import ConfigError, DtypeError, ShapeError

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
IDENTITIES = (0.5, 0.7, 0.9)


def packed(sequences: list[str]) -> relatives.Packed:
    offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
    return np.concatenate([np.empty(0, np.uint8), *(io.encode(x)[0] for x in sequences)]), offsets


def planted(num_families: int, rng: np.random.Generator) -> list[str]:
    """Families of five: an ancestor, and descendants that keep 95 to 55 % of its residues and lose or gain some."""
    found = []
    for _ in range(num_families):
        ancestor = rng.choice(list(LETTERS), int(rng.integers(120, 220)))
        found.append("".join(ancestor))
        for kept in (0.95, 0.85, 0.7, 0.55):
            child = np.where(rng.random(len(ancestor)) < kept, ancestor, rng.choice(list(LETTERS), len(ancestor)))
            at = int(rng.integers(20, 100))
            found.append("".join([*child[:at], *rng.choice(list(LETTERS), 3), *child[at + 2 :]]))
    return found


@pytest.fixture(scope="module")
def families() -> list[str]:
    return planted(8, np.random.default_rng(7))


@pytest.fixture(scope="module")
def oracle(families: list[str]) -> np.ndarray:
    """Identity of each pair by the best local alignment of the whole table, 0 where it covers too little."""
    aligner = Align.PairwiseAligner(mode="local")
    aligner.substitution_matrix = substitution_matrices.load("BLOSUM62")
    aligner.open_gap_score, aligner.extend_gap_score = -11, -1
    found = np.eye(len(families))
    for i, j in itertools.combinations(range(len(families)), 2):
        best = aligner.align(families[i], families[j])[0]
        shorter = 0 if len(families[i]) <= len(families[j]) else 1
        span = best.coordinates[shorter, -1] - best.coordinates[shorter, 0]
        counts = best.counts()
        columns = counts.identities + counts.mismatches + counts.gaps
        is_long = span >= 0.8 * min(len(families[i]), len(families[j]))
        found[i, j] = found[j, i] = counts.identities / columns if is_long else 0
    return found


def components(related: np.ndarray) -> np.ndarray:
    labels = np.arange(len(related))
    while True:
        smallest = np.array([labels[row].min() for row in related])
        if (smallest == labels).all():
            return labels
        labels = smallest


@pytest.mark.parametrize("identity", IDENTITIES)
def test_clusters_are_those_of_an_alignment_of_all_with_all(
    families: list[str], oracle: np.ndarray, identity: float
) -> None:
    found, wanted = relatives.cluster(packed(families), identity), components(oracle >= identity)
    together, needed = found[:, None] == found, wanted[:, None] == wanted
    # Alignments of equal score may differ in a column: the bound from below is a little lower.
    allowed = components(oracle >= identity - 0.03)
    assert not (together & (allowed[:, None] != allowed)).any()
    pairs = np.triu(needed, 1)
    assert pairs.sum() >= 8
    assert (together & pairs).sum() >= 0.95 * pairs.sum()


@pytest.mark.parametrize("identity", IDENTITIES)
def test_counts_and_nearest_agree_with_the_alignments(families: list[str], oracle: np.ndarray, identity: float) -> None:
    counts = relatives.count_relatives(packed(families), identity)
    wanted = (oracle >= identity).sum(1)
    assert abs(int(counts.sum()) - int(wanted.sum())) <= 0.05 * wanted.sum()
    queries = families[1::5]
    index, found = relatives.nearest(packed(queries), packed(families[::5]), identity)
    for i, (place, value) in enumerate(zip(index, found, strict=True)):
        assert (place, np.isnan(value)) == (i, False)
        assert value == pytest.approx(oracle[5 * i + 1, 5 * i], abs=0.02)


def test_fragments_and_equals_are_relatives_and_others_are_not() -> None:
    rng = np.random.default_rng(3)
    whole, other = ("".join(rng.choice(list(LETTERS), 200)) for _ in range(2))
    half = whole[:100] + "".join(rng.choice(list(LETTERS), 100))
    sequences = packed([whole, other, whole[30:140], whole, half, "", "AC"])
    assert relatives.cluster(sequences, 0.9).tolist() == [0, 1, 0, 0, 4, 5, 6]
    assert relatives.count_relatives(sequences, 0.9).tolist() == [3, 1, 3, 3, 1, 1, 1]


def test_a_repetitive_set_costs_no_more_than_its_length_allows() -> None:
    sequences = packed(["Q" * 300, "QP" * 200, "QP" * 199 + "Q", "X" * 50] * 50)
    labels = relatives.cluster(sequences, 0.9)
    assert labels.reshape(50, 4).max(0).tolist() == [0, 1, 1, 3]


@pytest.mark.parametrize("question", [relatives.cluster, relatives.count_relatives])
def test_threads_change_nothing(
    families: list[str], question: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = packed(planted(40, np.random.default_rng(1)))
    found = []
    for threads in ("1", "4"):
        monkeypatch.setenv("PROTPERF_NUM_THREADS", threads)
        found.append(question(sequences, 0.5).tolist())
    assert found[0] == found[1]


def test_wrong_arguments_are_refused_by_name(families: list[str]) -> None:
    tokens, offsets = packed(families)
    for identity in (0.29, 1.01, float("nan")):
        with pytest.raises(ConfigError, match="identity is"):
            relatives.cluster((tokens, offsets), identity)
    with pytest.raises(ShapeError, match="offsets"):
        relatives.cluster((tokens[1:], offsets), 0.5)
    with pytest.raises(ShapeError, match="offsets"):
        relatives.nearest((tokens, offsets), (tokens, offsets[::-1].copy()), 0.5)
    with pytest.raises(DtypeError, match="offsets"):
        relatives.count_relatives((tokens, offsets.astype(np.int32)), 0.5)
    empty = (np.empty(0, np.uint8), np.zeros(1, np.int64))
    assert relatives.cluster(empty, 0.5).tolist() == []
    assert relatives.nearest((tokens, offsets), empty, 0.5)[0].max() == -1
