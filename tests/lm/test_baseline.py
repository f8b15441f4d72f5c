"""Baselines against counts written out, as models of the other commands, and as files."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commands import error_line, in_process, table
from conftest import LETTERS

import protperf.lm as lm
from protperf import pairwise
from protperf.alignment import row_weights
from protperf.errors import CheckpointError, ConfigError
from protperf.lm.alignment.alignment import GAP, read_alignment
from protperf.lm.alignment.relatives import LEAST_MEMBERS, held_out
from protperf.lm.alignment.substitution import substitution
from protperf.lm.alphabet import EOS, FIRST_RESIDUE
from protperf.lm.baselines.family import FamilyEngine, SiteModel
from protperf.lm.data.batches import frame
from protperf.lm.engine import CAUSAL, MASKED

STANDARD = slice(FIRST_RESIDUE, FIRST_RESIDUE + 20)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 relatives of one protein of 40 residues, aligned, with gaps; each column allows three residues."""
    rng = np.random.default_rng(3)
    allowed = np.array([rng.choice(20, 3, replace=False) for _ in range(40)])
    chosen = allowed[np.arange(40), rng.choice(3, (120, 40), p=[0.6, 0.3, 0.1])]
    chosen[0] = allowed[:, 0]
    rows = np.where(rng.random((120, 40)) < 0.05, 20, chosen)
    rows[0] = chosen[0]
    path = tmp_path_factory.mktemp("family") / "family.a2m"
    path.write_text("".join(f">m{i}\n{''.join((LETTERS + '-')[c] for c in row)}\n" for i, row in enumerate(rows)))
    return path


@pytest.fixture(scope="module")
def site(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    assert in_process("baseline", family, "--kind", "site", "-o", out, "-q").returncode == 0
    return out


def wild_type(family: Path) -> str:
    return family.read_text().splitlines()[1]


def test_ngrams_are_the_counts_interpolated_order_by_order(fasta: Path, tmp_path: Path) -> None:
    model = lm.baseline(fasta, tmp_path / "ngram", kind="ngram", order=3)
    facts = json.loads((tmp_path / "ngram" / "baseline.json").read_text())
    texts = [x.split("\n", 1)[1].strip() for x in fasta.read_text().split(">")[1:]]
    symbols = [["|"] * 3 + [x if x in LETTERS else "?" for x in text] + ["|"] for text in texts]
    counts: Counter[tuple[str, ...]] = Counter()
    for text in symbols:
        for place in range(3, len(text)):
            counts.update(tuple(text[place - back : place + 1]) for back in range(3))

    def chance(context: tuple[str, ...], symbol: str, order: int) -> float:
        if order == 0:
            return 1 / 22
        context = context[len(context) - order + 1 :]
        total = sum(n for key, n in counts.items() if len(key) == order and key[:-1] == context)
        shorter, strength = chance(context, symbol, order - 1), facts["strengths"][order - 1]
        return (counts[(*context, symbol)] + strength * shorter) / (total + strength)

    tokens = frame(next(iter(lm_tokens(texts[3]))))
    rows = model._loaded.engine.log_probs(tokens, np.array([0, len(tokens)]), CAUSAL)
    assert np.exp(rows[:-1].astype(float)).sum(1) == pytest.approx(1, abs=1e-5)
    for place, symbol in enumerate(symbols[3][3:]):
        context = tuple(symbols[3][place + 1 : place + 3])
        token = EOS if symbol == "|" else int(tokens[place + 1])
        share = 1 / 6 if symbol == "?" else 1
        assert math.exp(rows[place, token]) == pytest.approx(share * chance(context, symbol, 3), rel=1e-4)


def lm_tokens(*texts: str) -> list[np.ndarray]:
    from protperf import io

    return [io.encode(text)[0] for text in texts]


def test_the_strength_of_an_order_is_the_best_by_the_deleted_estimate() -> None:
    from protperf.lm.baselines import ngram

    rng = np.random.default_rng(1)
    counts = rng.integers(0, 6, (ngram.NUM_SYMBOLS, ngram.NUM_SYMBOLS))
    _, strengths = ngram.fit(counts)
    unigram = counts.sum(0)
    shorter = (unigram + strengths[0] / 22) / (unigram.sum() + strengths[0])

    def left_out(strength: float) -> float:
        total = 0.0
        for context, row in enumerate(counts):
            for symbol, seen in enumerate(row):
                if seen:
                    chance = (seen - 1 + strength * shorter[symbol]) / (counts[context].sum() - 1 + strength)
                    total += seen * math.log(chance)
        return total

    tried = [10.0**e for e in np.arange(-1, 6.01, 0.25)]
    assert strengths[1] == pytest.approx(max(tried, key=left_out))


def test_pieces_copies_and_batches_of_ngrams_change_no_bit(fasta: Path, tmp_path: Path) -> None:
    engine = lm.baseline(fasta, tmp_path / "m", kind="ngram", order=4)._loaded.engine
    x, y = lm_tokens("MKVLAACD", "WYWYW")
    whole = engine.log_probs(frame(x), np.array([0, len(x) + 2]), CAUSAL)
    together = engine.log_probs(
        np.concatenate([frame(y), frame(x)]), np.array([0, len(y) + 2, len(x) + len(y) + 4]), CAUSAL
    )
    assert (together[len(y) + 2 :] == whole).all()
    state = engine.empty_state(2)
    first = state.advance(np.concatenate([frame(x)[:3], frame(y)[:1]]), np.array([0, 3, 4]))
    assert (first[:3] == whole[:3]).all()
    copy = state.select([0, 0])
    rest = copy.advance(np.concatenate([frame(x)[3:], frame(x)[3:4]]), np.array([0, len(x) - 1, len(x)]))
    assert (rest[:-1] == whole[3:]).all()
    assert (rest[-1] == whole[3]).all()
    assert state.positions.tolist() == [3, 1]
    assert copy.positions.tolist() == [len(x) + 2, 4]


def test_site_scores_are_the_odds_of_weighted_counts(family: Path, site: Path) -> None:
    codes = read_alignment(family).codes
    weights, known = row_weights(codes, 0.8), substitution()
    wild = wild_type(family)

    def log_prob(column: int, letter: str) -> float:
        counts = [sum(w for w, c in zip(weights, codes[:, column], strict=True) if c == a) for a in range(20)]
        total, kinds = sum(counts), sum(c > 0 for c in counts)
        expected = sum(counts[a] / total * known.conditional[a, LETTERS.index(letter)] for a in range(20))
        return math.log((counts[LETTERS.index(letter)] + 5 * kinds * expected) / (total + 5 * kinds))

    model = lm.load(site)
    variants = [f"{wild[4]}5W", f"{wild[9]}10D:{wild[20]}21G", "WT"]
    scores = model.variants(wild, variants).numpy("score")
    single = log_prob(4, "W") - log_prob(4, wild[4])
    double = log_prob(9, "D") - log_prob(9, wild[9]) + log_prob(20, "G") - log_prob(20, wild[20])
    assert scores == pytest.approx([single, double, 0.0], abs=1e-5)
    longer = model.variants("GG" + wild + "GGG", [f"{wild[4]}7W"]).numpy("score")
    assert longer == pytest.approx([single], abs=1e-5)
    masked = model.variants(wild, variants, strategy="masked").numpy("score")
    assert masked == pytest.approx(scores, abs=1e-4)


def test_a_residue_outside_of_the_columns_has_the_odds_of_blosum(family: Path, site: Path) -> None:
    wild, known = wild_type(family), substitution().conditional
    found = lm.load(site).variants("GG" + wild, ["G1W"]).numpy("score")
    g, w = LETTERS.index("G"), LETTERS.index("W")
    assert found == pytest.approx([math.log(known[g, w] / known[g, g])])


def test_blosum_gives_the_entries_of_the_matrix(tmp_path: Path) -> None:
    from Bio.Align import substitution_matrices

    model = lm.baseline((), tmp_path / "blosum", kind="blosum")
    scan = model.scan("ACDW")
    matrix = substitution_matrices.load("BLOSUM62")
    unit = scan.matrix[0, LETTERS.index("W")] / matrix["A"]["W"]
    assert unit == pytest.approx(0.32, abs=0.01)  # half-bits
    for row, old in zip(scan.matrix, "ACDW", strict=True):
        for new, score in zip(LETTERS, row, strict=True):
            assert score == pytest.approx(0 if new == old else unit * matrix[old][new], abs=1e-6)
    assert substitution().background.sum() == pytest.approx(1, abs=1e-9)


def test_rows_left_out_are_not_relatives_of_what_was_counted(family: Path, site: Path) -> None:
    codes = read_alignment(family).codes
    engine = lm.load(site)._loaded.engine
    assert 0 < len(engine.members) <= LEAST_MEMBERS
    near = np.array([(codes == row).mean(1) >= 0.8 for row in engine.members]).any(0)
    assert not near[0]
    counted = np.zeros((40, 20))
    for code in range(20):
        counted[:, code] = row_weights(codes, 0.8)[~near] @ (codes[~near] == code)
    # What was never counted has only pseudocounts.
    present = np.exp(engine.without_members.conditionals(codes[0])).argmax(1)
    assert (present == counted.argmax(1)).all()
    assert not (engine.without_members.conditionals(codes[0]) == engine.model.conditionals(codes[0])).all()


def test_pairs_of_a_small_family_are_those_of_all_its_rows(family: Path, site: Path, tmp_path: Path) -> None:
    """And the columns of the others stand for it in comparisons; a large family does without the members."""
    codes = read_alignment(family).codes
    lm.baseline(family, tmp_path / "pairs", kind="pairwise")
    pairs, columns = (lm.load(path)._loaded.engine for path in (tmp_path / "pairs", site))
    complete = np.ascontiguousarray(codes[(codes != GAP).mean(1) >= 0.7])
    assert (pairs.model.fields == pairwise.fit(complete, row_weights(complete, 0.8)).fields).all()
    assert (pairs.members == columns.members).all()
    row = pairs.members[0]
    assert (pairs.without_members.conditionals(row) == columns.without_members.conditionals(row)).all()


@pytest.mark.parametrize(("num_rows", "wanted"), [(2, 0), (4, 0), (5, 1), (31, 7), (40, 8), (400, 8), (1000, 20)])
def test_few_rows_are_left_out_and_none_of_a_handful(num_rows: int, wanted: int) -> None:
    codes = np.random.default_rng(0).integers(0, 20, (num_rows, 60), np.uint8)
    members, kept = held_out(codes, np.ones(num_rows), 0.8)
    assert len(members) == wanted == (~kept).sum()
    assert kept[0]


def test_every_command_takes_a_baseline_or_says_why_not(fasta: Path, site: Path, tmp_path: Path) -> None:
    ngram = tmp_path / "ngram"
    assert in_process("baseline", fasta, "--kind", "ngram", "--order", 2, "-o", ngram).returncode == 0
    for words in (["score", ngram, fasta], ["score", site, fasta, "--method", "pll-fast"], ["eval", ngram, fasta]):
        result = in_process(*words, "-q", "--allow-rejects")
        assert result.returncode == 0, result.stderr
        assert len(table(result.stdout)) >= 1
    assert in_process("eval", site, fasta, "-q").returncode == 0
    assert in_process("generate", ngram, "-n", 3, "-q").stdout.count(b">") == 3
    assert in_process("scan", ngram, "MKVL", "-q").returncode == 0
    assert b"kind                 site" in in_process("info", site).stdout
    refused = in_process("embed", ngram, fasta, "-o", tmp_path / "x.npz", "-q")
    assert refused.returncode == 2
    assert "no hidden states" in error_line(refused)
    refused = in_process("generate", site, "-n", 3, "-q")
    assert refused.returncode == 2
    assert "left to right" in error_line(refused)
    refused = in_process("convert", site, "--to", "hf", "-o", tmp_path / "hf")
    assert refused.returncode == 2
    assert "baseline" in error_line(refused)


def test_scores_of_an_ngram_are_sums_and_full_variants_their_differences(fasta: Path, tmp_path: Path) -> None:
    model = lm.baseline(fasta, tmp_path / "m", kind="ngram", order=3)
    ll = dict(zip(("w", "m", "d"), model.score(["MKVLAACDWY", "MKVGAACDWY", "MKVAACDWY"]).numpy("ll"), strict=True))
    found = model.variants("MKVLAACDWY", ["L4G", "L4del"]).numpy("score")
    assert found == pytest.approx([ll["m"] - ll["w"], ll["d"] - ll["w"]], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--kind", "site"], "--kind site takes one alignment; 0 given"),
        (["--kind", "unigram"], "--kind unigram takes sequence files; none given"),
        (["x.fa", "--kind", "blosum"], "--kind blosum takes no file; leave x.fa out"),
        (["x.fa", "--kind", "hmm"], "choose one of unigram"),
    ],
)
def test_files_that_a_kind_does_not_take_are_refused(words: list[str], what: str, tmp_path: Path) -> None:
    result = in_process("baseline", *words, "-o", tmp_path / "m")
    assert result.returncode == 2
    assert what in error_line(result)
    assert not (tmp_path / "m").exists()


def test_a_baseline_is_replaced_only_when_asked_and_nothing_else_ever(site: Path, family: Path, tmp_path: Path) -> None:
    refused = in_process("baseline", family, "--kind", "site", "-o", site)
    assert refused.returncode == 3
    assert "--force" in error_line(refused)
    before = (site / "baseline.json").read_bytes()
    assert in_process("baseline", family, "--kind", "site", "-o", site, "--force", "-q").returncode == 0
    assert (site / "baseline.json").read_bytes() == before  # the same input, the same bytes
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    refused = in_process("baseline", family, "--kind", "site", "-o", tmp_path / "mine", "--force")
    assert refused.returncode == 3
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_damaged_baseline_is_refused_by_name(site: Path, tmp_path: Path) -> None:
    for name, change in (("model.safetensors", b"x"), ("baseline.json", b" ")):
        copy = tmp_path / name.replace(".", "-")
        copy.mkdir()
        for file in site.iterdir():
            data = file.read_bytes()
            (copy / file.name).write_bytes(data[:-1] + change if file.name == name else data)
        with pytest.raises(CheckpointError, match=name):
            lm.load(copy)


def test_torch_is_not_asked_to_compute_a_table(site: Path) -> None:
    with pytest.raises(ConfigError, match="baseline"):
        lm.load(site, engine="torch")


def test_masked_sites_are_predicted_by_their_column(family: Path, site: Path) -> None:
    engine = lm.load(site)._loaded.engine
    (tokens,) = lm_tokens(wild_type(family))
    framed = frame(tokens)
    framed[7] = 2
    rows = engine.log_probs(framed, np.array([0, len(framed)]), MASKED)
    assert rows[7, STANDARD] == pytest.approx(engine.model.conditionals(engine.members[0])[6], abs=1e-6)
    batch = np.concatenate([framed[:20], framed])
    again = engine.log_probs(batch, np.array([0, 20, len(batch)]), MASKED)
    assert (again[20:] == rows).all()
    assert all(a < b for a, b in itertools.pairwise(engine.members[:, 0] * 0 + np.arange(len(engine.members))))
    assert (engine.members <= GAP).all()


def test_a_pairwise_model_scores_by_energies_and_predicts_by_conditionals(family: Path, tmp_path: Path) -> None:
    model = lm.baseline(family, tmp_path / "pairs", kind="pairwise")
    engine, wild = model._loaded.engine, wild_type(family)
    pairs = engine.model
    x = np.array([LETTERS.index(letter) for letter in wild])

    def energy(codes: np.ndarray) -> float:
        places = np.arange(len(codes))
        fields = pairs.fields[places, codes].sum(dtype=float)
        both = pairs.couplings[places[:, None], places, codes[:, None], codes]
        return float(fields + 0.5 * both.sum(dtype=float))

    double = x.copy()
    double[9], double[20] = LETTERS.index("D"), LETTERS.index("G")
    single = x.copy()
    single[4] = LETTERS.index("W")
    variants = [f"{wild[4]}5W", f"{wild[9]}10D:{wild[20]}21G"]
    scores = model.variants("AG" + wild, [f"{wild[4]}7W", f"{wild[9]}12D:{wild[20]}23G"]).numpy("score")
    assert scores == pytest.approx([energy(single) - energy(x), energy(double) - energy(x)], abs=1e-4)
    masked = model.variants(wild, variants, strategy="masked").numpy("score")
    assert masked[0] == pytest.approx(scores[0], abs=1e-4)


def test_the_query_stands_in_its_own_columns_and_not_where_the_profile_prefers() -> None:
    """Here the profile is that of the query read backwards, which places the query nowhere."""
    query = np.arange(20, dtype=np.uint8)
    backwards = np.full((20, 20), np.log(0.001))
    backwards[np.arange(20), query[::-1]] = np.log(1 - 19 * 0.001)
    engine = FamilyEngine("site", backwards, (SiteModel(backwards),) * 2, query, query[None], "float64")
    own = [*range(20)]
    mutant = query.copy()
    mutant[[3, 9]] = 7
    for codes, columns in (
        (query, own),
        (mutant, own),
        (query[5:], own[5:]),
        (np.concatenate([[GAP, 1, 1], query]), [-1, -1, -1, *own]),
        # No protein that resembles the query: the profile's answer.
        (query[::-1], own),
    ):
        (found,) = engine._columns_of([codes.astype(np.uint8)])
        assert found.tolist() == columns
    both = engine._columns_of([query[::-1], query])
    assert [columns.tolist() for columns in both] == [own, own]
