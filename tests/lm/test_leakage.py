"""What a training says of held-out sequences that have relatives in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from conftest import LETTERS

from protperf.lm.data.store import read_store
from protperf.lm.training.leakage import MAX_ASKED, remark


def proteins(path: Path, sequences: list[str]) -> Path:
    path.write_text("".join(f">p{i}\n{x}\n" for i, x in enumerate(sequences)))
    return path


def test_relatives_in_the_training_are_counted_and_others_are_passed_over(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    known = ["".join(rng.choice(list(LETTERS), 90)) for _ in range(20)]
    unrelated = ["".join(rng.choice(list(LETTERS), 90)) for _ in range(5)]
    mutant = "".join(x if rng.random() < 0.8 else "A" for x in known[3])
    train = read_store(proteins(tmp_path / "train.fasta", known))
    assert remark(train, read_store(proteins(tmp_path / "a.fasta", unrelated))) is None
    held = read_store(proteins(tmp_path / "b.fasta", [*unrelated, mutant, known[7]]))
    found = str(remark(train, held))
    assert found.startswith("2 of 7 held-out sequences have a relative of at least 50% identity")
    many = read_store(proteins(tmp_path / "c.fasta", [known[0]] * (MAX_ASKED + 50)))
    assert str(remark(train, many)).startswith(f"{MAX_ASKED} of {MAX_ASKED} held-out sequences that were looked up")
