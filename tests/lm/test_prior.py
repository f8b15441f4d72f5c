"""A prior of a family next to a model: what is mixed, by which weight, and what a table remembers of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from commands import error_line, in_process, write_fasta
from conftest import LETTERS, small_config, train_run

import protperf.lm as lm
from protperf import io
from protperf.lm.alignment.alignment import GAP, Alignment
from protperf.lm.alignment.profile import conservation
from protperf.lm.alignment.substitution import substitution
from protperf.lm.alphabet import FIRST_RESIDUE
from protperf.lm.baselines.family import FamilyEngine
from protperf.lm.data.batches import frame
from protperf.lm.engine import CAUSAL
from protperf.lm.training.options import TrainOptions
from protperf.lm.variants.mixing import mix
from protperf.lm.variants.prior import kind_for
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
    prior = FamilyEngine("pairwise", np.zeros((2, 20)), (pairs, pairs), members[0], members, "float64")
    (_, causal, _), (_, masked, _) = (mix(lm.load(runs[kind])._loaded.engine, prior).perplexities for kind in KINDS)
    known = 1 + 19 * math.exp(-8)
    assert causal == pytest.approx(math.sqrt(20 * known))
    assert masked == pytest.approx(known)


def brute_force_conservation(prior: lm.Model, wild: str) -> np.ndarray:
    """The weight of each residue of a wild type that is the query of its family: one column each."""
    background = substitution().background
    frequencies = np.exp(prior._loaded.engine._scores[:, :20].astype(float)) * background
    entropies = [sum(p * math.log(p / q) for p, q in zip(row, background, strict=True)) for row in frequencies]
    roots = np.sqrt(entropies)
    assert len(roots) == len(wild)
    return roots / roots.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_weighted_sums_of_the_models_and_the_priors_times_conservation(
    kind: str, family: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    wild = wild_type(family)
    variants = [f"{wild[3]}4{'A' if wild[3] != 'A' else 'C'}", f"{wild[0]}1W:{wild[9]}10Y", "WT"]
    model, prior = lm.load(runs[kind]), lm.baseline(family, tmp_path / "site", kind="site")
    weight = mix(model._loaded.engine, prior._loaded.engine).weight
    alone, odds = (each.variants(wild, variants).numpy("score") for each in (model, prior))
    plain = model.variants(wild, variants, prior=tmp_path / "site", conservation="off").numpy("score")
    assert plain == pytest.approx((1 - weight) * alone + weight * odds, abs=1e-6)

    by_residue = brute_force_conservation(prior, wild)
    singles = np.abs(prior.variants(wild, variants[1].split(":")).numpy("score"))
    weights = [by_residue[3], (by_residue[[0, 9]] * singles).sum() / singles.sum(), 1.0]
    weighed = model.variants(wild, variants, prior=tmp_path / "site").numpy("score")
    assert weighed == pytest.approx(weights * plain, abs=1e-6)
    assert weighed != pytest.approx(plain, abs=1e-2)
    scanned = model.scan(wild, prior=tmp_path / "site", region="4")
    assert scanned.strategies[1:] == ("prior", "by conservation")
    assert scanned.matrix[0, LETTERS.index(variants[0][-1])] == pytest.approx(weighed[0], abs=1e-5)

    # A baseline is asked for its log-odds, unless conservation is wanted.
    assert prior.variants(wild, variants, conservation="on").numpy("score") == pytest.approx(weights * odds, abs=1e-6)


def test_conservation_of_what_knows_no_columns_is_refused(family: Path, runs: dict[str, Path]) -> None:
    result = in_process("scan", runs["causal"], wild_type(family), "--conservation", "on")
    assert result.returncode == 2
    assert "--conservation on needs the columns of a family" in error_line(result)
    assert in_process("scan", runs["causal"], wild_type(family), "--conservation", "off").returncode == 0


def test_a_residue_in_no_column_is_as_conserved_as_one_that_was_seen_alone(family: Path, tmp_path: Path) -> None:
    wild = wild_type(family)
    engine = lm.baseline(family, tmp_path / "site", kind="site")._loaded.engine
    (longer,) = tokens_of("WX" + wild)
    weights = engine.odds(longer).weights
    known = substitution()
    alone = (known.conditional * np.log(known.conditional / known.background)).sum(1)
    columns = weights[2:] ** 2 / conservation(engine._scores[:, :20] + np.log(known.background))
    assert columns == pytest.approx(np.full(30, columns[0]), rel=1e-4)
    assert weights[0] ** 2 / columns[0] == pytest.approx(alone[LETTERS.index("W")], rel=1e-4)
    assert weights[1] ** 2 / columns[0] == pytest.approx(alone.mean(), rel=1e-4)
    assert weights.mean() == pytest.approx(1)


def test_a_column_of_which_nothing_is_known_is_not_conserved(tmp_path: Path) -> None:
    rows = ["MKXVLAWDEF", "MKXVLAWDEY", "MRXVLGWDEF"]
    path = write_fasta(tmp_path / "family.fa", {f"m{i}": row for i, row in enumerate(rows)})
    engine = lm.baseline(path, tmp_path / "site", kind="site")._loaded.engine
    weights = engine.odds(tokens_of(rows[0])[0]).weights
    assert 0 <= weights[2] < 0.01 < np.delete(weights, 2).min()
    assert weights.mean() == pytest.approx(1)
    # Rounding must not make an entropy negative: it would have no root.
    background = np.log(substitution().background).astype(np.float32)[None]
    for scale in (1 - 1e-6, 1.0, 1 + 1e-6):
        assert conservation(background * np.float32(scale)).min() >= 0


def tokens_of(*texts: str) -> list[np.ndarray]:
    return [io.encode(text)[0] for text in texts]


def test_a_file_is_fitted_by_pairs_where_it_has_the_rows_for_it(
    family: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    wild, model = wild_type(family), lm.load(runs["causal"])
    variants = [f"{wild[3]}4{'A' if wild[3] != 'A' else 'C'}", f"{wild[0]}1W:{wild[9]}10Y"]
    few = tmp_path / "few.fasta"
    few.write_text("\n".join(family.read_text().splitlines()[:98]) + "\n")
    for given, kind in ((family, "pairwise"), (few, "site")):
        lm.baseline(given, tmp_path / kind, kind=kind)
        wanted = model.variants(wild, variants, prior=tmp_path / kind).numpy("score")
        assert (model.variants(wild, variants, prior=given).numpy("score") == wanted).all()
        result = in_process("variants", runs["causal"], *variants, "--wt", wild, "--prior", given)
        assert f"{given} ({kind} model of {150 if given == family else 49} rows)".encode() in result.stderr


@pytest.mark.parametrize(
    ("num_rows", "num_columns", "num_gaps", "kind"),
    [
        (49, 20, 0, "site"),
        (50, 20, 6, "pairwise"),
        (50, 20, 7, "site"),
        (3300, 800, 0, "site"),
        (3000, 800, 0, "pairwise"),
        (100, 801, 0, "site"),
    ],
)
def test_pairs_are_fitted_where_rows_are_enough_and_the_time_is_short(
    num_rows: int, num_columns: int, num_gaps: int, kind: str
) -> None:
    codes = np.zeros((num_rows, num_columns), np.uint8)
    codes[:, :num_gaps] = GAP
    assert kind_for(Alignment([], codes)) == kind


def test_sequences_that_are_not_aligned_are_aligned_to_the_wild_type(runs: dict[str, Path], tmp_path: Path) -> None:
    """The same as `align` and `baseline` one after the other."""
    rng = np.random.default_rng(1)
    usual = rng.integers(0, 20, 60)
    records = {}
    for i in range(120):
        row = np.where(rng.random(60) < 0.7, usual, rng.integers(0, 20, 60))
        row = np.delete(row, rng.integers(10, 50, i % 3)) if i else usual
        records[f"m{i}"] = "".join(LETTERS[c] for c in np.append(row, rng.integers(0, 20, i % 4)))
    unaligned = write_fasta(tmp_path / "family.fa", records)
    wild = write_fasta(tmp_path / "wild.fa", {"m0": records["m0"]})
    result = in_process("scan", runs["causal"], wild, "--region", "5-9", "--prior", unaligned)
    assert result.returncode == 0
    assert b"120 of 120 sequences aligned to m0" in result.stderr
    assert b"(pairwise model of 121 rows)" in result.stderr
    lm.align(unaligned, tmp_path / "family.a3m", query=wild)
    assert (
        in_process("baseline", tmp_path / "family.a3m", "--kind", "pairwise", "-o", tmp_path / "pairs").returncode == 0
    )
    assert (
        in_process("scan", runs["causal"], wild, "--region", "5-9", "--prior", tmp_path / "pairs").stdout
        == result.stdout
    )

    foreign = write_fasta(tmp_path / "foreign.fa", {f"x{i}": "W" * (20 + i) for i in range(5)})
    result = in_process("scan", runs["causal"], wild, "--prior", foreign)
    assert result.returncode == 1
    assert "none of 5 sequences fits the query 'm0'" in error_line(result)


def test_an_alignment_with_a_short_row_is_not_taken_for_sequences(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "cut.fa").write_text(">a\nMKV-LA\n>b\nMKIL\n")
    result = in_process("scan", runs["causal"], "MKVLA", "--prior", tmp_path / "cut.fa")
    assert result.returncode == 1
    assert "row 'b' has 4 columns, the first row 6" in error_line(result)


def test_the_command_says_the_weight_and_the_table_remembers_it(
    family: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    out, wild = tmp_path / "scan.tsv", wild_type(family)
    words = ["scan", runs["causal"], wild, "--region", "1-3", "-o", out, "--force"]
    said = in_process(*words, "--prior", family, "--report", tmp_path / "scan.html")
    assert said.returncode == 0
    page = (tmp_path / "scan.html").read_text()
    assert "family.fasta (pairwise model of 150 rows)" in page
    assert "prior, by conservation" in page
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
    assert b"small.fa (site model of 2 rows), weight 0.5: the alignment has too few sequences" in result.stderr
    (tmp_path / "alone.fa").write_text(">a\nMKVLA\n")
    result = in_process("scan", runs["causal"], "MKVLA", "--prior", tmp_path / "alone.fa")
    assert b"alone.fa (site model of 1 row), weight 0.5" in result.stderr


def test_what_is_not_a_prior_is_refused_before_a_model_is_read(
    family: Path, fasta: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    lm.baseline(fasta, tmp_path / "ngram", kind="unigram")
    cases = [
        (tmp_path / "none.a2m", 3, "none.a2m"),
        (tmp_path / "ngram", 2, "is a unigram model, which knows no family"),
        (runs["causal"], 2, "is a directory without a baseline"),
        (fasta, 1, "fits the query"),
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


def test_a_model_of_a_family_is_said_to_rank_better_with_it(
    family: Path, runs: dict[str, Path], tmp_path: Path
) -> None:
    options = TrainOptions(steps=1, batch_tokens=200, validate=0.1, weights="relatives")
    own = train_run(family, tmp_path / "own", small_config(objective="causal"), options).run
    wild, advice = wild_type(family), b"its sequences, named by --prior, make the ranking better"
    change = f"{wild[3]}4{'A' if wild[3] != 'A' else 'C'}"
    for words in (["variants", own, change, "--wt", wild], ["scan", own, wild, "--region", "1-2"]):
        assert in_process(*words).stderr.count(advice) == 1
        assert advice not in in_process(*words, "--prior", family).stderr
    assert advice not in in_process("variants", runs["causal"], change, "--wt", wild).stderr


def test_several_models_have_a_weight_each(family: Path, runs: dict[str, Path]) -> None:
    result = in_process("scan", runs["causal"], wild_type(family), "--also", runs["masked"], "--prior", family)
    assert result.stderr.count(b"weight ") == 2
