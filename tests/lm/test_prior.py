"""A prior of a family next to a model: what is mixed, by which weight, and what a table remembers of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from commands import error_line, in_process, write_fasta
from conftest import LETTERS

import protperf.lm as lm
from protperf.lm.alignment.alignment import GAP
from protperf.lm.alphabet import FIRST_RESIDUE
from protperf.lm.baselines.family import FamilyEngine
from protperf.lm.data.batches import frame
from protperf.lm.engine import CAUSAL
from protperf.lm.variants.mixing import mix
from protperf.pairwise import Pairwise

KINDS = ("causal", "masked")
STANDARD = slice(FIRST_RESIDUE, FIRST_RESIDUE + 20)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 rows of 30 columns, each of which has one residue in most rows."""
    rng = np.random.default_rng(4)
    usual = rng.integers(0, 20, 30)
    rows = np.where(rng.random((150, 30)) < 0.6, usual, rng.integers(0, 20, (150, 30)))
    rows[0] = usual
    path = tmp_path_factory.mktemp("family") / "family.fasta"
    path.write_text("".join(f">m{i}\n{''.join(LETTERS[c] for c in row)}\n" for i, row in enumerate(rows)))
    return path


def wild_type(family: Path) -> str:
    return family.read_text().splitlines()[1]


def brute_force_weight(engine, prior) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """The weight and the perplexity, residue by residue."""
    best = (math.inf, 0.0)
    for weight in np.linspace(0, 1, 21):
        nats = []
        for row in prior.members:
            tokens = (row[row != GAP] + FIRST_RESIDUE).astype(np.uint8)
            framed = frame(tokens)
            log_probs = engine.log_probs(framed, np.array([0, len(framed)]), CAUSAL)
            for place, column in enumerate(np.flatnonzero(row != GAP)):
                ours = np.exp(log_probs[place, STANDARD].astype(float)) ** (1 - weight)
                mixed = ours * np.exp(prior.without_members.conditionals(row)[column]) ** weight
                nats.append(-math.log(mixed[row[column]] / mixed.sum()))
        best = min(best, (float(np.mean(nats)), float(weight)))
    return best[1], math.exp(best[0])


def test_the_weight_makes_left_out_members_likeliest(family: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    prior = lm.baseline(family, tmp_path / "site", kind="site")._loaded.engine
    assert len(prior.members)
    engine = lm.load(runs["causal"])._loaded.engine
    found = mix(engine, prior)
    weight, perplexity = brute_force_weight(engine, prior)
    assert found.weight == found.likeliest == pytest.approx(weight)
    assert found.perplexities[2] == pytest.approx(perplexity, rel=1e-5)
    # The model has seen nothing of this family; the prior knows it.
    assert found.weight > 0.5
    assert found.perplexities[1] < found.perplexities[0]


def test_a_model_that_knows_the_members_leaves_half_the_weight_to_the_prior(family: Path, tmp_path: Path) -> None:
    prior = lm.baseline(family, tmp_path / "site", kind="site")._loaded.engine
    # Counted on nothing else than the members, so that it has them by heart.
    rows = ["".join(LETTERS[residue] for residue in row[row != GAP]) for row in prior.members]
    members = write_fasta(tmp_path / "members.fa", {f"m{i}": row for i, row in enumerate(rows * 20)})
    known = lm.baseline(members, tmp_path / "ngram", kind="ngram", order=5)._loaded.engine
    found = mix(known, prior)
    assert found.perplexities[0] < found.perplexities[1]
    assert found.likeliest < found.weight == 0.5
    assert "weight 0.5; " in str(found)
    assert "(0.5 is the least)" in str(found)


def test_a_prior_of_pairs_is_given_the_side_that_the_model_is_given(runs: dict[str, Path]) -> None:
    """Two columns that are always the same: who sees one of them knows the other, and a causal model sees the first."""
    rng = np.random.default_rng(4)
    members = rng.integers(0, 20, (4, 2)).astype(np.uint8)
    members[:, 1] = members[:, 0]
    couplings = np.zeros((2, 2, 20, 20), np.float32)
    couplings[0, 1] = couplings[1, 0] = 8 * np.eye(20)
    pairs = Pairwise(np.zeros((2, 20), np.float32), couplings)
    prior = FamilyEngine("pairwise", np.zeros((2, 20)), (pairs, pairs), members, "float64")
    (_, causal, _), (_, masked, _) = (mix(lm.load(runs[kind])._loaded.engine, prior).perplexities for kind in KINDS)
    known = 1 + 19 * math.exp(-8)
    assert causal == pytest.approx(math.sqrt(20 * known))
    assert masked == pytest.approx(known)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_weighted_sums_of_the_models_and_the_priors(
    kind: str, family: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    wild = wild_type(family)
    variants = [f"{wild[3]}4{'A' if wild[3] != 'A' else 'C'}", f"{wild[0]}1W:{wild[9]}10Y"]
    model, prior = lm.load(runs[kind]), lm.baseline(family, tmp_path / "site", kind="site")
    weight = mix(model._loaded.engine, prior._loaded.engine).weight
    alone, odds = (each.variants(wild, variants).numpy("score") for each in (model, prior))
    for given in (family, tmp_path / "site"):
        mixed = model.variants(wild, variants, prior=given).numpy("score")
        assert mixed == pytest.approx((1 - weight) * alone + weight * odds, abs=1e-6)
    scanned = model.scan(wild, prior=str(family), region="4")
    assert scanned.matrix[0, LETTERS.index(variants[0][-1])] == pytest.approx(mixed[0], abs=1e-5)


def test_the_command_says_the_weight_and_the_table_remembers_it(
    family: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    out, wild = tmp_path / "scan.tsv", wild_type(family)
    words = ["scan", runs["causal"], wild, "--region", "1-3", "-o", out, "--force"]
    said = in_process(*words, "--prior", family)
    assert said.returncode == 0
    assert b"weight " in said.stderr
    assert b"left out of it: perplexity" in said.stderr
    facts = json.loads((tmp_path / "scan.tsv.meta.json").read_text())
    assert any("prior_weights" in str(part) for part in (facts, facts.get("fingerprint", {})))
    mixed = out.read_bytes()
    assert in_process(*words, "-q").returncode == 0
    assert out.read_bytes() != mixed


def test_an_alignment_too_small_to_leave_rows_out_has_half_the_weight(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "small.fa").write_text(">a\nMKVLA\n>b\nMKILA\n")
    result = in_process("scan", runs["causal"], "MKVLA", "--prior", tmp_path / "small.fa")
    assert result.returncode == 0
    assert b"weight 0.5: the alignment has too few sequences" in result.stderr


def test_what_is_no_prior_is_refused_before_a_model_is_read(
    family: Path, fasta: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    lm.baseline(fasta, tmp_path / "ngram", kind="unigram")
    cases = [
        (tmp_path / "none.a2m", 3, "none.a2m"),
        (tmp_path / "ngram", 2, "is a unigram model, which knows no family"),
        (runs["causal"], 2, "is a directory without a baseline"),
        (fasta, 1, "columns, the first row"),
    ]
    for prior, code, what in cases:
        result = in_process("variants", runs["causal"], "M1A", "--wt", "MKV", "--prior", prior)
        assert (result.returncode, what in error_line(result)) == (code, True), result.stderr
    foreign = next(letter for letter in LETTERS if letter not in wild_type(family))
    result = in_process("scan", runs["causal"], foreign * 30, "--prior", family)
    assert result.returncode == 1
    assert "give the alignment of its own family" in error_line(result)
    result = in_process("variants", runs["causal"], "M1del", "--wt", wild_type(family), "--prior", family)
    assert result.returncode == 1


def test_several_models_have_a_weight_each(family: Path, runs: dict[str, Path]) -> None:
    result = in_process("scan", runs["causal"], wild_type(family), "--also", runs["masked"], "--prior", family)
    assert result.stderr.count(b"weight ") == 2
