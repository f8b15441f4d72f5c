"""Models that ship: each loads by name wherever a model is read, says where it comes from, and knows proteins."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from commands import error_line, in_process

from protperf import lm
from protperf.errors import MissingFileError
from protperf.lm.fasta import read_fasta
from protperf.lm.storage import builtin, checkpoint

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "data"
MAX_BYTES = 12_000_000


@pytest.mark.parametrize("name", builtin.names())
def test_a_model_that_ships_is_whole_small_and_says_where_it_comes_from(name: str) -> None:
    step = checkpoint.find(name)
    facts = json.loads(in_process("info", name, "--json").stdout)
    assert facts["command"].startswith("protperf train --fasta ")
    assert facts["started"]
    # Where it was trained is nobody's business.
    assert "/" not in facts["command"] + facts["data"] + facts["validation"]
    assert sum(file.stat().st_size for file in step.path.iterdir()) < MAX_BYTES
    card = (step.path / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("CC BY 4.0", facts["command"], f"{facts['trained_tokens'] / 1e6:.0f} million"))


def test_proteins_are_likelier_than_their_residues_in_another_order() -> None:
    model, rng = lm.load("builtin:nano"), random.Random(4)
    for file in ("human_myoglobin.fasta", "unrelated_dhfr.fasta"):
        (record,) = read_fasta(EXAMPLES / file)
        sequence = str(record.seq)
        shuffled = ["".join(rng.sample(sequence, len(sequence))) for _ in range(20)]
        scores = model.score([sequence, *shuffled]).numpy("ll")
        assert scores[0] > scores[1:].max(), file


def test_a_model_that_ships_is_asked_and_trained_on_by_name(tmp_path: Path) -> None:
    path = EXAMPLES / "human_myoglobin.fasta"
    assert in_process("scan", "builtin:nano", path, "--region", "1-3", "-o", tmp_path / "scan.tsv").returncode == 0
    words = ["--init", "builtin:nano", "--steps", 1, "--batch-tokens", 400, "-q"]
    globins = EXAMPLES / "globins.fasta.gz"
    assert in_process("train", "--fasta", globins, "-o", tmp_path / "run", "--recipe", "plain", *words).returncode == 0
    facts = lm.info(tmp_path / "run")
    assert facts["init"].startswith("builtin:nano, step ")
    assert facts["attention"] == lm.info("builtin:nano")["attention"]


def test_an_unknown_one_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no such model ships with protperf; there is .*builtin:nano"):
        lm.load("builtin:huge")
    refused = in_process("score", "builtin:../lm", EXAMPLES / "human_myoglobin.fasta")
    assert refused.returncode == 3
    assert "builtin:nano" in error_line(refused)
