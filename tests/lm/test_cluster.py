"""Clusters, weights and nearest relatives of stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import LETTERS

from protperf.lm.data.cluster import cluster, nearest, packed, weights
from protperf.lm.data.store import TokenStore, read_store, write_tokens


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    """Ten unrelated proteins; the first has four relatives at 90 % and one equal, which stand apart from it."""
    rng = np.random.default_rng(2)
    proteins = rng.choice(list(LETTERS), (10, 150))
    relatives = [np.where(rng.random(150) < 0.92, proteins[0], rng.choice(list(LETTERS), 150)) for _ in range(4)]
    lines = [f">p\n{''.join(x)}\n" for x in [*proteins, *relatives, proteins[0]]]
    path = tmp_path / "crowd.fasta"
    path.write_text("".join(lines))
    return path


def test_a_crowd_of_relatives_weighs_as_much_as_one_protein(crowd: Path) -> None:
    store = read_store(crowd)
    assert cluster(store, 0.8).tolist() == [*range(10), 0, 0, 0, 0, 0]
    found = weights(store)
    assert found[1:10].tolist() == [1.0] * 9
    assert found.sum() == pytest.approx(10)


def test_a_selection_and_a_mapped_file_give_the_same_answers(crowd: Path, tmp_path: Path) -> None:
    write_tokens(crowd, tmp_path / "crowd.tokens")
    for store in (read_store(crowd), read_store(tmp_path / "crowd.tokens")):
        part: TokenStore = store.select(np.array([0, 3, 11]))
        assert cluster(part, 0.8).tolist() == [0, 1, 0]
        tokens, offsets = packed(part)
        assert (len(tokens), offsets.tolist()) == (450, [0, 150, 300, 450])
        index, identity = nearest(part, store.select(np.array([1, 10])), 0.5)
        assert index.tolist() == [1, -1, 1]
        assert identity[0] > 0.85
        assert np.isnan(identity[1])
