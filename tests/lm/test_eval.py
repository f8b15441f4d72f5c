"""Evaluation against sums written out residue by residue, and what must not change its figures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from commands import in_process
from planted import PlantedMasked, normalized

import protperf.lm as lm
from protperf import io
from protperf.lm.alphabet import FIRST_RESIDUE, MASK, NUM_STANDARD
from protperf.lm.data.batches import frame
from protperf.lm.engine import CAUSAL, MASKED
from protperf.lm.evaluation.job import evaluate
from protperf.lm.evaluation.options import EvalOptions
from protperf.lm.evaluation.plot import draw
from protperf.lm.evaluation.predict import hidden
from protperf.lm.watch import Stage


def standard(tokens: np.ndarray) -> np.ndarray:
    return np.flatnonzero((tokens >= FIRST_RESIDUE) & (tokens < FIRST_RESIDUE + NUM_STANDARD))


def test_causal_figures_are_the_sums_over_residues(runs: dict[str, Path], fasta: Path) -> None:
    model = lm.load(runs["causal"], dtype="float64")
    rows = {(row.by, row.group): row for row in model.eval(fasta, by=("length", "residue", "calibration"))}
    nats, hits, confidence, letters = [], [], [], []
    for record in io.scan([fasta]):
        tokens = frame(record.tokens)
        found = model._loaded.engine.log_probs(tokens, np.array([0, len(tokens)]), CAUSAL)
        for place in standard(record.tokens):
            row = found[place, FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD]
            residue = int(record.tokens[place]) - FIRST_RESIDUE
            nats.append(-row[residue])
            hits.append(int(row.argmax()) == residue)
            confidence.append(math.exp(row.max()))
            letters.append(residue)
    whole = rows["all", "all"]
    assert whole.residues == len(nats)
    assert whole.ppl == pytest.approx(math.exp(np.mean(nats)), rel=1e-9)
    assert whole.accuracy == np.mean(hits)
    assert whole.confidence == pytest.approx(np.mean(confidence), rel=1e-9)
    bins = [int(x * 10) for x in confidence]
    gaps = [abs(sum(c - h for c, h, b in zip(confidence, hits, bins, strict=True) if b == one)) for one in range(10)]
    assert whole.ece == pytest.approx(sum(gaps) / len(nats), rel=1e-9)
    counts = np.bincount(letters, minlength=20)
    chances = (counts + 1) / (counts + 1).sum()
    assert whole.ppl_unigram == pytest.approx(math.exp(-(counts @ np.log(chances)) / counts.sum()))
    alanine = [x for x, letter in zip(nats, letters, strict=True) if letter == 0]
    assert rows["residue", "A"].ppl == pytest.approx(math.exp(np.mean(alanine)), rel=1e-9)
    assert rows["residue", "A"].accuracy == np.mean([h for h, x in zip(hits, letters, strict=True) if x == 0])
    for by in ("length", "residue", "calibration"):
        assert sum(row.residues for (kind, _), row in rows.items() if kind == by) == len(nats)


def test_masked_figures_are_those_of_the_hidden_sites(fasta: Path) -> None:
    table = normalized(np.random.default_rng(1).normal(0, 1, (29, 29)))

    def predict(tokens: np.ndarray, place: int) -> np.ndarray:
        return table[int(tokens.astype(int).sum() + place) % 29]

    options = EvalOptions(masks=3)
    (row,) = evaluate(PlantedMasked(predict), io.read_tokens(fasta), "set", options, Stage())
    nats = []
    for record in io.scan([fasta]):
        for number in range(3):
            sites = hidden(record.tokens, options.seed, number)
            masked = record.tokens.copy()
            masked[sites] = 2
            nats += [-np.float32(predict(masked, site)[record.tokens[site]]) for site in sites]
            assert len(sites) == max(1, round(0.15 * len(standard(record.tokens))))
            assert set(sites) <= set(standard(record.tokens))
    assert (row.mode, row.residues) == ("masked", len(nats))
    # Three masks of a sequence are one sequence.
    assert row.sequences == sum(bool(len(standard(record.tokens))) for record in io.scan([fasta]))
    assert row.ppl == pytest.approx(math.exp(np.mean(nats)), rel=1e-6)


def test_neither_order_nor_batches_change_a_figure(runs: dict[str, Path], fasta: Path, tmp_path: Path) -> None:
    records = fasta.read_text().split(">")[1:]
    turned = tmp_path / "turned" / fasta.name
    turned.parent.mkdir()
    turned.write_text("".join(f">{record}" for record in reversed(records)))
    model = lm.load(runs["both"])
    by = ("length", "residue")
    first = model.eval(fasta, by=by, deterministic=True, masks=2).rows
    assert {row.mode for row in first} == {"causal", "masked"}
    assert model.eval(turned, by=by, deterministic=True, masks=2, batch_tokens=70).rows == first
    packed = model.eval(turned, by=by, masks=2, batch_tokens=100).rows
    assert [row.ppl for row in packed] == pytest.approx([row.ppl for row in first], rel=1e-5)


def test_the_command_writes_a_table_and_fails_above_a_limit(runs: dict[str, Path], fasta: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval.tsv"
    words = ["eval", runs["causal"], fasta, runs["causal"].parent / "train.fasta", "-o", out, "-q"]
    result = in_process(*words, "--train", fasta)
    assert result.returncode == 0
    lines = [line.split("\t") for line in out.read_text().splitlines()]
    assert [line[0] for line in lines] == ["set", "proteins.fasta", "train.fasta"]
    assert (tmp_path / "eval.tsv.meta.json").exists()
    result = in_process(*words, "--force", "--fail-above", "2")
    assert result.returncode == 1
    assert b"above 2" in result.stderr if isinstance(result.stderr, bytes) else "above 2" in result.stderr
    result = in_process("eval", runs["causal"], fasta, "--by", "colour")
    assert result.returncode == 2
    assert "length, residue, calibration, cluster" in str(result.stderr)


def relatives(tmp_path: Path) -> tuple[Path, dict[str, list[str]]]:
    """A file of two families and two sequences alone, and the sequences of each by the first id."""
    rng = np.random.default_rng(8)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    founders = {name: rng.choice(letters, 80) for name in ("a0", "b0", "c0", "d0")}
    found: dict[str, list[str]] = {name: ["".join(founder)] for name, founder in founders.items()}
    for name, count in (("a0", 2), ("b0", 4)):
        for _ in range(count):
            changed = founders[name].copy()
            changed[rng.choice(80, 8, replace=False)] = "A"
            found[name].append("".join(changed))
    rows = [(f"{name[0]}{i}", x) for name, members in found.items() for i, x in enumerate(members)]
    path = tmp_path / "families.fasta"
    path.write_text(">empty\n" + "".join(f">{name}\n{x}\n" for name, x in rows))
    return path, found


def test_a_cluster_has_the_perplexity_of_its_sequences_together(runs: dict[str, Path], tmp_path: Path) -> None:
    path, families = relatives(tmp_path)
    model = lm.load(runs["causal"], dtype="float64")
    rows = [row for row in model.eval(path, by=("cluster",)) if row.by == "cluster"]
    assert [(row.group, row.sequences) for row in rows] == [("b0", 5), ("a0", 3), ("c0", 1), ("d0", 1)]
    for row in rows:
        scores = model.score(families[row.group])
        assert row.residues == scores.numpy("scored").sum()
        assert row.ppl == pytest.approx(math.exp(-scores.numpy("ll").sum() / row.residues), rel=1e-9)
    alone = [row for row in model.eval(path, by=("cluster",), identity=1.0) if row.by == "cluster"]
    assert [row.sequences for row in alone] == [1] * 10


def test_a_plot_changes_no_row_and_is_the_same_each_time(runs: dict[str, Path], fasta: Path, tmp_path: Path) -> None:
    money = tmp_path / "five$ and $.fasta"
    money.write_text(fasta.read_text())
    words = ["eval", runs["both"], fasta, money, "-q", "--train", fasta]
    plain = in_process(*words).stdout
    for name in ("x.svg", "x.png"):
        drawn = in_process(*words, "--plot", tmp_path / name)
        assert (drawn.returncode, drawn.stdout) == (0, plain), drawn.stderr
    first = (tmp_path / "x.svg").read_bytes()
    assert in_process(*words, "--plot", tmp_path / "x.svg").returncode == 0
    assert (tmp_path / "x.svg").read_bytes() == first
    text = first.decode()
    for word in ("proteins.fasta, causal", "proteins.fasta, masked", "Calibration", "1-63"):
        assert f"<!-- {word} -->" in text, word
    assert b"\x89PNG" in (tmp_path / "x.png").read_bytes()[:8]
    refused = in_process(*words, "--plot", tmp_path / "x.pdf")
    assert refused.returncode == 2
    assert b"name a file that ends in one of .png, .svg" in refused.stderr
    assert in_process(*words, "--plot", fasta.with_suffix(".svg"), "-o", fasta.with_suffix(".svg")).returncode == 2


def test_the_plotted_points_are_the_rows(runs: dict[str, Path], fasta: Path) -> None:
    rows = lm.load(runs["causal"]).eval(fasta, by=("length", "calibration")).rows
    by_length, calibration, shares = draw(rows).axes
    lines = {line.get_label(): line.get_xydata() for line in by_length.get_lines()}
    found = [row for row in rows if row.by == "length"]
    np.testing.assert_array_equal(lines["proteins.fasta, causal"], [(i, row.ppl) for i, row in enumerate(found)])
    np.testing.assert_array_equal(lines["residue frequencies"][:, 1], [row.ppl_unigram for row in found])
    found = [row for row in rows if row.by == "calibration" and row.residues >= 20]
    points = calibration.get_lines()[1].get_xydata()
    np.testing.assert_array_equal(points, [(row.confidence, row.accuracy) for row in found])
    assert sum(bar.get_height() for bar in shares.patches) == pytest.approx(1)


def test_baselines_stand_next_to_the_model_at_the_same_residues(
    runs: dict[str, Path], fasta: Path, tmp_path: Path
) -> None:
    fasta.write_text("".join(fasta.read_text().splitlines(keepends=True)[:12]))
    (tmp_path / "family.fa").write_text(">q\nMKVLAACDWY\n>a\nMKILGACDWY\n>b\nMRVLAACEWY\n")
    ngram = lm.baseline(fasta, tmp_path / "ngram", kind="ngram", order=3)
    site = lm.baseline(tmp_path / "family.fa", tmp_path / "site", kind="site")
    named = {"baseline": (str(tmp_path / "ngram"), str(tmp_path / "site"))}
    (row,) = lm.load(runs["causal"]).eval(fasta, **named)

    def perplexity(model: lm.Model, mode: int) -> float:
        nats = []
        for record in io.scan([fasta]):
            framed, engine = frame(record.tokens), model._loaded.engine
            for place in standard(record.tokens):
                asked = framed.copy()
                if mode == MASKED:
                    asked[np.arange(place % 16, len(record.tokens), 16) + 1] = MASK
                at = place if mode == CAUSAL else place + 1
                found = engine.log_probs(asked, np.array([0, len(asked)]), mode, np.array([at]))[0]
                chances = np.exp(found[FIRST_RESIDUE : FIRST_RESIDUE + NUM_STANDARD].astype(float))
                nats.append(-math.log(chances[int(record.tokens[place]) - FIRST_RESIDUE] / chances.sum()))
        return math.exp(np.mean(nats))

    assert row.ppl_ngram == pytest.approx(perplexity(ngram, CAUSAL), rel=1e-5)
    assert row.ppl_family == pytest.approx(perplexity(site, MASKED), rel=1e-5)
    (alone,) = lm.load(runs["causal"]).eval(fasta)
    assert math.isnan(alone.ppl_ngram)
    assert math.isnan(alone.ppl_family)
    assert alone.ppl == row.ppl
    (counted,) = lm.load(runs["causal"]).eval(fasta, train=fasta)
    assert counted.ppl_ngram < counted.ppl_unigram
    refused = in_process("eval", runs["causal"], fasta, "--baseline", runs["causal"])
    assert refused.returncode == 2
    assert b"--baseline" in refused.stderr
