"""The nearest known sequence: words and candidates against brute force, identities against alignments by hand."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from commands import write_fasta
from conftest import LETTERS

from protperf import io
from protperf.lm.generation import novelty
from protperf.lm.generation.novelty import K, KnownSequences, identity


def tokens(text: str) -> np.ndarray:
    return io.encode(text)[0]


def words(text: str) -> set[str]:
    return {text[i : i + K] for i in range(len(text) - K + 1) if set(text[i : i + K]) <= set(LETTERS)}


@pytest.fixture
def proteins() -> dict[str, str]:
    rng = random.Random(2)
    # Few letters, so that words are shared; some are odd or short.
    made = {f"p{i}": "".join(rng.choices("ACDE", k=rng.randint(0, 60))) for i in range(40)}
    return {**made, "odd": "ACXDEUACDBAC", "twice": "ACDEACDEACDEACDE", "again": made["p3"]}


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_candidates_share_most_words(block: int, proteins: dict[str, str], tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(novelty, "_BLOCK", block)
    known = KnownSequences([write_fasta(tmp_path / "x.fa", proteins)])
    texts = list(proteins.values())
    rng = random.Random(5)
    for query in [*texts[:5], *("".join(rng.choices("ACDEF", k=30)) for _ in range(20)), "ACD", "", "WWWWWW"]:
        shared = [len(words(query) & words(text)) for text in texts]
        order = sorted(range(len(texts)), key=lambda i: (-shared[i], i))
        assert known._candidates(tokens(query)) == [i for i in order if shared[i]][: novelty.ALIGNED]


def test_membership_is_equality_of_all_residues(proteins: dict[str, str], tmp_path: Path) -> None:
    known = KnownSequences([write_fasta(tmp_path / "x.fa", proteins)])
    assert len(known) == len(proteins)
    for text in proteins.values():
        assert tokens(text) in known
        assert tokens(text + "A") not in known
        assert len(text) < 2 or tokens(text[1:]) not in known


@pytest.mark.parametrize(
    ("sequence", "other", "wanted"),
    [
        ("MKVACDEF", "MKVACDEF", 1.0),
        ("KVACD", "MMMKVACDEFF", 1.0),
        ("MKVACDEF", "KVACD", 5 / 8),
        ("MKVACDEF", "MKWACDEF", 7 / 8),
        ("MKVACDEFGHIKLMNPQRST", "MKVACDEFGHKLMNPQRST", 19 / 20),
        ("WWWW", "PPPP", 0.0),
        ("MUVOJ", "MUVOJ", 1.0),
        ("", "MKV", 0.0),
        ("MKV", "", 0.0),
    ],
)
def test_identity_is_the_share_of_residues_that_are_aligned_with_the_same(
    sequence: str, other: str, wanted: float
) -> None:
    assert identity(sequence, other) == pytest.approx(wanted)


def test_the_nearest_is_the_most_identical_candidate(proteins: dict[str, str], tmp_path: Path) -> None:
    known = KnownSequences([write_fasta(tmp_path / "x.fa", proteins)])
    names = list(proteins)
    rng = random.Random(9)
    for name in ("p1", "p7", "p20"):
        text = list(proteins[name])
        for _ in range(len(text) // 10):
            text[rng.randrange(len(text))] = rng.choice(LETTERS)
        query = "".join(text)
        best = max(identity(query, proteins[names[i]]) for i in known._candidates(tokens(query)))
        found = known.nearest(tokens(query))
        assert found is not None
        assert found[1] == best == identity(query, proteins[found[0]])
    assert known.nearest(tokens("WWWWWWWW")) is None


def test_real_relatives_are_found_as_an_alignment_with_all_finds_them(shared_data: Path) -> None:
    known = KnownSequences([shared_data / "demo" / "globins.fasta.gz"])
    records = [record for batch in io.read_tokens(shared_data / "demo" / "globins.fasta.gz") for record in batch]
    rng = np.random.default_rng(0)
    worst = 0.0
    for record in [records[i] for i in rng.choice(len(records), 2, replace=False)]:
        changed = record.tokens.copy()
        places = rng.choice(len(changed), len(changed) // 3, replace=False)
        changed[places] = rng.integers(3, 23, len(places))
        found = known.nearest(changed)
        assert found is not None
        exact = max(identity(io.decode(changed), other.sequence) for other in records)
        worst = max(worst, exact - found[1])
    assert worst < 0.02
