"""What a training says of held-out sequences that have relatives in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import LETTERS

from protperf.lm.data.store import read_store
from protperf.lm.training.leakage import MAX_ASKED, look


def proteins(path: Path, sequences: list[str]) -> Path:
    path.write_text("".join(f">p{i}\n{x}\n" for i, x in enumerate(sequences)))
    return path


def test_relatives_in_the_training_are_counted_and_others_are_passed_over(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    known = ["".join(rng.choice(list(LETTERS), 90)) for _ in range(20)]
    unrelated = ["".join(rng.choice(list(LETTERS), 90)) for _ in range(5)]
    mutant = "".join(x if rng.random() < 0.8 else "A" for x in known[3])
    train = read_store(proteins(tmp_path / "train.fasta", known))
    none = look(train, read_store(proteins(tmp_path / "a.fasta", unrelated)))
    assert none is not None
    assert (none.remark(), none.facts()["related_50%"]) == (None, 0)
    found = look(train, read_store(proteins(tmp_path / "b.fasta", [*unrelated, mutant, known[7]])))
    assert found is not None
    assert str(found.remark()).startswith("2 of 7 held-out sequences have a relative of at least 50% identity")
    assert found.facts() == {"looked_up": 7, "related_50%": 2, "related_70%": 2, "related_90%": 1}
    many = look(train, read_store(proteins(tmp_path / "c.fasta", [known[0]] * (MAX_ASKED + 50))))
    start = f"{MAX_ASKED} of {MAX_ASKED} held-out sequences that were looked up"
    assert str(many and many.remark()).startswith(start)
    assert look(train, train.select(np.empty(0, np.int64))) is None
