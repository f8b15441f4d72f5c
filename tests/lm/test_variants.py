"""Scores of variants against brute force: every strategy has a slow twin here that shares no code with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LETTERS, small_config
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from protperf import io
from protperf.errors import ConfigError, DataError
from protperf.lm.alphabet import BOS, EOS, MASK
from protperf.lm.engine import CAUSAL, MASKED
from protperf.lm.model.config import ATTENTIONS
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine, TorchState
from protperf.lm.variants import full
from protperf.lm.variants.options import StrategyOptions, choose_strategy
from protperf.lm.variants.parse import parse
from protperf.lm.variants.score import make_scorer
from protperf.lm.variants.variant import Edit, Variant, difference, normalized
from protperf.lm.variants.wild_type import WildType, read_wild_type

WILD = "".join(np.random.default_rng(2).choice(list(LETTERS), 70))
PER_RESIDUE = 1e-5
"""Nats per residue by which the way of computing may move a score."""


def network(attention: str = "relu", **choices: object) -> Network:
    """A network with weights large enough that its predictions differ from site to site."""
    net = Network(small_config(attention=attention, **choices)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return net


def log_probs(net: Network, tokens: Iterable[int], mode: int) -> np.ndarray:
    listed = torch.tensor(list(tokens))
    with torch.no_grad():
        return torch.log_softmax(net(listed, torch.tensor([0, len(listed)]), mode), -1).numpy()


def ll(net: Network, sequence: str) -> float:
    """Log-likelihood of a sequence, each residue given those before it, read anew for each of them."""
    tokens = io.encode(sequence)[0].tolist()
    rows = log_probs(net, [BOS, *tokens], CAUSAL)
    return sum(float(row[token]) for row, token in zip(rows, tokens, strict=False))


def ll_reverse(net: Network, sequence: str) -> float:
    """The same, each residue given those after it."""
    tokens = io.encode(sequence)[0].tolist()[::-1]
    rows = log_probs(net, [EOS, *tokens], CAUSAL)
    return sum(float(row[token]) for row, token in zip(rows, tokens, strict=False))


def wild_type(offset: int = 1, sequence: str = WILD) -> WildType:
    return read_wild_type(sequence, offset)


def mutated(variant: str, wild: WildType) -> str:
    return io.decode(parse(variant, wild).applied(wild))


def named(index: int, change: str, wild: WildType) -> str:
    return f"{wild.letter(index)}{index + wild.offset}{change}"


def other(letter: str) -> str:
    return "W" if letter != "W" else "A"


def several(wild: WildType) -> list[str]:
    """Singles at both ends and in between, multi-mutants, deletions, insertions, and the wild type, in no order."""
    place = [named(i, "", wild) for i in range(len(wild))]
    singles = [named(i, other(wild.letter(i)), wild) for i in (0, 1, 15, 16, 33, 34, 35, 68, 69)]
    indels = [
        f"{place[9]}del",
        f"{place[9]}_{place[14]}del",
        f"{place[0]}_{place[2]}del",
        f"{place[60]}_{place[69]}del",
        f"{place[68]}_{place[69]}insGGGGS",
        f"{place[20]}_{place[21]}insKT",
        f"{place[40]}_{place[44]}delinsWW",
        f"{place[0]}delinsGS{wild.letter(0)}",
        f"{place[30]}_{place[33]}dup",
    ]
    multi = [":".join([singles[4], singles[1], singles[8]]), f"{singles[7]}:{indels[0]}:{indels[5]}", "WT"]
    return [*multi, *indels[::-1], *singles, singles[3], f"{place[5]}="]


# -- strategies


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_full_is_the_difference_of_two_log_likelihoods(attention: str) -> None:
    net, wild = network(attention), wild_type(24)
    variants = several(wild)
    scorer = make_scorer(TorchEngine(net), wild, StrategyOptions(strategy="full", batch_tokens=200))
    found = scorer.score([parse(text, wild) for text in variants])
    whole = ll(net, wild.sequence)
    for text, (score, per_residue) in zip(variants, found, strict=True):
        mutant = mutated(text, wild)
        assert score == pytest.approx(ll(net, mutant) - whole, abs=PER_RESIDUE * len(wild)), text
        assert per_residue == pytest.approx(ll(net, mutant) / len(mutant) - whole / len(wild), abs=PER_RESIDUE), text


def test_full_in_float64_equals_brute_force_to_its_rounding_errors() -> None:
    net, wild = network().double(), wild_type()
    variants = several(wild)
    for batch_tokens in (1, 60, 4096):
        scorer = make_scorer(TorchEngine(net), wild, StrategyOptions(strategy="full", batch_tokens=batch_tokens))
        found = scorer.score([parse(text, wild) for text in variants])[:, 0]
        exact = [ll(net, mutated(text, wild)) - ll(net, wild.sequence) for text in variants]
        np.testing.assert_allclose(found, exact, atol=1e-10, rtol=0)


@pytest.mark.parametrize("batch_tokens", [1, 60, 4096])
@pytest.mark.parametrize("deterministic", [False, True])
def test_full_in_reverse_is_that_of_the_sequences_read_from_their_ends(batch_tokens: int, deterministic: bool) -> None:
    """And both directions are the mean of the two readings."""
    net, wild = network().double(), wild_type(24)
    texts = several(wild)
    variants = [parse(text, wild) for text in texts]
    model = TorchEngine(net)
    found = full.FullScorer(model, wild, batch_tokens, deterministic, "reverse").score(variants)
    mutants = [mutated(text, wild) for text in texts]
    whole = ll_reverse(net, wild.sequence)
    exact = [(ll_reverse(net, x) - whole, ll_reverse(net, x) / len(x) - whole / len(wild)) for x in mutants]
    np.testing.assert_allclose(found, exact, atol=1e-10, rtol=0)
    forward = full.FullScorer(model, wild, batch_tokens, deterministic).score(variants)
    both = full.BothReadings(model, wild, batch_tokens, deterministic).score(variants)
    np.testing.assert_array_equal(both, 0.5 * (forward + found))
    assert np.abs(forward - found).max() > 0.1, "the two readings should differ"


def test_in_reverse_only_what_stands_before_a_change_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, wild = TorchEngine(network()), wild_type()
    scorer = full.FullScorer(model, wild, 4096, False, "reverse")
    read: list[int] = []
    advance = TorchState.advance

    def counted(self: TorchState, tokens: np.ndarray, *given: object, **named: object) -> np.ndarray:
        read.append(len(tokens))
        return advance(self, tokens, *given, **named)

    monkeypatch.setattr(TorchState, "advance", counted)
    variants = [parse(named(3, letter, wild), wild) for letter in "ACDEFG" if letter != wild.letter(3)]
    scorer.score(variants)
    # EOS, the 66 residues that all have in common, and for each the changed residue and two of the three before it.
    assert sum(read) == 1 + 66 + 3 * len(variants)
    assert scorer.tokens_read(variants[0]) == 4


@pytest.mark.parametrize("attention", ["relu", "exact"])
def test_long_suffixes_are_read_in_chunks(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protperf.lm.inference.CHUNK", 16)
    monkeypatch.setattr("protperf.lm.inference.EXACT_CHUNK", 16)
    net, wild = network(attention), wild_type()
    for deterministic in (False, True):
        options = StrategyOptions(strategy="full", batch_tokens=10, deterministic=deterministic)
        scorer = make_scorer(TorchEngine(net), wild, options)
        for text, score in zip(several(wild), scorer.score([parse(t, wild) for t in several(wild)]), strict=True):
            exact = ll(net, mutated(text, wild)) - ll(net, wild.sequence)
            assert score[0] == pytest.approx(exact, abs=PER_RESIDUE * len(wild)), text


def test_states_are_held_for_few_variants_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a large network, where one state takes megabytes."""
    net, wild = network(), wild_type()
    selected: list[int] = []

    select = TorchState.select

    def counted(self: TorchState, indices: Sequence[int]) -> TorchState:
        selected.append(len(indices))
        return select(self, indices)

    monkeypatch.setattr(TorchState, "select", counted)
    variants = [parse(named(i, letter, wild), wild) for i in range(60, 70) for letter in "ACDEFG"]
    expected = make_scorer(TorchEngine(net), wild, StrategyOptions(strategy="full")).score(variants)
    config = net.config
    state = config.num_layers * config.num_heads * 2 * config.num_features * (2 + config.head_dim) * 4
    assert max(selected) > 10
    monkeypatch.setattr(full, "STATE_BYTES", 3 * state)
    selected.clear()
    found = make_scorer(TorchEngine(net), wild, StrategyOptions(strategy="full")).score(variants)
    assert max(selected) <= 3
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("objective", ["both", "causal"])
def test_wt_looks_up_one_pass(objective: str) -> None:
    net, wild = network(objective=objective), wild_type(-5)
    tokens = io.encode(wild.sequence)[0].tolist()
    rows = log_probs(net, [BOS, *tokens], CAUSAL)[:-1]
    if objective == "both":
        rows = log_probs(net, [BOS, *tokens, EOS], MASKED)[1:-1]
    scorer = make_scorer(TorchEngine(net), wild, StrategyOptions(strategy="wt"))
    texts = [named(3, "W", wild), f"{named(3, 'W', wild)}:{named(40, 'C', wild)}", "WT"]
    (one, _), (two, _), (none, _) = scorer.score([parse(text, wild) for text in texts])
    first, second = (float(rows[i, io.encode(new)[0][0]] - rows[i, tokens[i]]) for i, new in ((3, "W"), (40, "C")))
    assert one == pytest.approx(first, abs=1e-5)
    assert two == pytest.approx(first + second, abs=1e-5)
    assert none == 0


def masked_by_hand(net: Network, wild: WildType, sites: dict[int, str], together: bool) -> float:
    """The sum over sites of log p(new) - log p(old), each site masked alone, or all at once."""
    tokens = io.encode(wild.sequence)[0].tolist()
    total = 0.0
    for site, new in sites.items():
        copy = [BOS, *tokens, EOS]
        for masked in sites if together else [site]:
            copy[masked + 1] = MASK
        row = log_probs(net, copy, MASKED)[site + 1]
        total += float(row[io.encode(new)[0][0]] - row[tokens[site]])
    return total


@pytest.mark.parametrize("strategy", ["masked", "masked-joint"])
@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_masked_strategies_mask_each_site_alone_or_all_at_once(
    strategy: str, attention: str, batch_tokens: int
) -> None:
    net, wild = network(attention, objective="masked"), wild_type()
    sets = [{i: other(wild.letter(i)) for i in sites} for sites in ((3,), (3, 40), (0, 40, 69), (40, 3), (40,), ())]
    texts = [":".join(named(site, new, wild) for site, new in sites.items()) or "WT" for sites in sets]
    scorer = make_scorer(TorchEngine(net), wild, StrategyOptions(strategy=strategy, batch_tokens=batch_tokens))
    found = scorer.score([parse(text, wild) for text in texts])[:, 0]
    for sites, score in zip(sets, found, strict=True):
        expected = masked_by_hand(net, wild, sites, strategy == "masked-joint")
        assert score == pytest.approx(expected, abs=1e-5)


def test_masked_joint_equals_masked_for_singles_and_differs_for_multi_mutants() -> None:
    net, wild = network(objective="masked"), wild_type()
    texts = [named(5, "W", wild), f"{named(5, 'W', wild)}:{named(6, 'W', wild)}"]
    alone, joint = (
        make_scorer(TorchEngine(net), wild, StrategyOptions(strategy=strategy)).score([parse(t, wild) for t in texts])
        for strategy in ("masked", "masked-joint")
    )
    assert alone[0, 0] == joint[0, 0]
    assert abs(alone[1, 0] - joint[1, 0]) > 1e-3


@pytest.mark.parametrize("strategy", ["wt", "masked", "masked-joint", "full"])
def test_order_and_company_of_variants_do_not_matter(strategy: str) -> None:
    net, wild = network(), wild_type()
    texts = several(wild) if strategy == "full" else [t for t in several(wild) if parse(t, wild).is_substitution]
    variants = [parse(text, wild) for text in texts]

    def scores(given: list[Variant], **options: object) -> np.ndarray:
        return make_scorer(TorchEngine(net), wild, StrategyOptions(strategy=strategy, **options)).score(given)[:, 0]

    alone = [scores([variant], deterministic=True)[0] for variant in variants]
    np.testing.assert_allclose(scores(variants), alone, atol=PER_RESIDUE * len(wild))
    np.testing.assert_allclose(scores(variants[::-1], batch_tokens=90)[::-1], alone, atol=PER_RESIDUE * len(wild))
    # Bit for bit where that is asked for, with any number of threads.
    torch.set_num_threads(3)
    assert scores(variants[::-1], batch_tokens=90, deterministic=True)[::-1].tolist() == alone


def test_ambiguous_residues_of_the_wild_type_are_context() -> None:
    net, sequence = network(), f"{WILD[:20]}X{WILD[20:]}"
    wild = wild_type(1, sequence)
    text = named(10, other(wild.letter(10)), wild)
    (score, _), = make_scorer(TorchEngine(net), wild, StrategyOptions()).score([parse(text, wild)])  # fmt: skip

    def scored(sequence: str) -> float:
        tokens = io.encode(sequence)[0].tolist()
        rows = log_probs(net, [BOS, *tokens], CAUSAL)
        return sum(float(rows[i, token]) for i, token in enumerate(tokens) if io.VOCABULARY[token] != "X")

    assert score == pytest.approx(scored(mutated(text, wild)) - scored(sequence), abs=1e-3)
    with pytest.raises(DataError, match="has X at position 21, which has no score"):
        parse(f"{wild.letter(19)}20_{wild.letter(21)}22del", wild)


def test_a_masked_model_refuses_an_indel_and_names_pll() -> None:
    net, wild = network(objective="masked"), wild_type()
    scorer = make_scorer(TorchEngine(net), wild, StrategyOptions())
    scorer.check(parse(named(3, "W", wild), wild))
    with pytest.raises(DataError, match=r"changes the length.* protperf score --method pll"):
        scorer.check(parse(f"{named(3, '', wild)}del", wild))
    both = make_scorer(TorchEngine(network()), wild, StrategyOptions(strategy="masked"))
    with pytest.raises(DataError, match="use strategy='full'"):
        both.check(parse(f"{named(3, '', wild)}del", wild))


def test_a_strategy_that_was_not_trained_is_refused_with_another_name() -> None:
    assert [choose_strategy(o, "auto") for o in ("masked", "causal", "both")] == ["masked", "full", "full"]
    with pytest.raises(ConfigError, match="use strategy='masked'"):
        choose_strategy("masked", "full")
    for strategy in ("masked", "masked-joint"):
        with pytest.raises(ConfigError, match="use strategy='full'"):
            choose_strategy("causal", strategy)


def test_a_direction_that_was_not_trained_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, wild = TorchEngine(network()), wild_type()
    for direction in ("reverse", "both"):
        with pytest.raises(ConfigError, match=r"reads forward only .* train --directions both"):
            make_scorer(model, wild, StrategyOptions(strategy="full", direction=direction))
        with pytest.raises(ConfigError, match=rf"direction='{direction}' is for strategy='full'"):
            make_scorer(model, wild, StrategyOptions(strategy="masked", direction=direction))
    monkeypatch.setattr("protperf.lm.direction.is_trained_in_both", lambda config: True)
    names = {"auto": "full-both", "both": "full-both", "reverse": "full-reverse", "forward": "full"}
    for direction, name in names.items():
        assert make_scorer(model, wild, StrategyOptions(strategy="full", direction=direction)).name == name


# -- what a text means


@pytest.mark.parametrize(
    ("text", "name", "mutant"),
    [
        ("A3G", "A3G", "MKGAAGLLKTDEW"),
        ("p.Ala3Gly", "A3G", "MKGAAGLLKTDEW"),
        ("p.(Ala3Gly)", "A3G", "MKGAAGLLKTDEW"),
        ("NP_000537.3:p.Ala3Gly", "A3G", "MKGAAGLLKTDEW"),
        ("a3g", "A3G", "MKGAAGLLKTDEW"),
        ("A3G:D11N", "A3G:D11N", "MKGAAGLLKTNEW"),
        ("D11N,A3G", "A3G:D11N", "MKGAAGLLKTNEW"),
        ("A3G; D11N", "A3G:D11N", "MKGAAGLLKTNEW"),
        ("p.[Ala3Gly;Asp11Asn]", "A3G:D11N", "MKGAAGLLKTNEW"),
        ("A3_A5delinsGAG", "A3G:A5G", "MKGAGGLLKTDEW"),
        ("A3del", "A5del", "MKAAGLLKTDEW"),
        ("A4del", "A5del", "MKAAGLLKTDEW"),
        ("p.Ala3_Ala4del", "A4_A5del", "MKAGLLKTDEW"),
        ("K2_A3insA", "A5_G6insA", "MKAAAAGLLKTDEW"),
        ("A5dup", "A5_G6insA", "MKAAAAGLLKTDEW"),
        ("L7_L8dup", "L8_K9insLL", "MKAAAGLLLLKTDEW"),
        ("K2_A3insGlySer", "K2_A3insGS", "MKGSAAAGLLKTDEW"),
        ("A5_L7delinsAW", "G6_L7delinsW", "MKAAAWLKTDEW"),
        ("M1delinsGM", "M1delinsGM", "GMKAAAGLLKTDEW"),
        ("W13delinsWG", "W13delinsWG", "MKAAAGLLKTDEWG"),
        ("K2_A3insW:A3G", "K2_A3insW:A3G", "MKWGAAGLLKTDEW"),
        *((name, "WT", "MKAAAGLLKTDEW") for name in ("WT", "wt", "_wt", "=", "p.=", "p.(=)", "A3=", "p.Ala3=", "A3A")),
    ],
)
def test_a_variant_is_read_however_it_is_written(text: str, name: str, mutant: str) -> None:
    for offset in (1, 24, -2):
        wild = read_wild_type("MKAAAGLLKTDEW", offset)
        shifted = _shifted(text, offset - 1)
        variant = parse(shifted, wild)
        assert io.decode(variant.applied(wild)) == mutant
        assert variant.name(wild) == _shifted(name, offset - 1)
        # The normal form is a variant in its turn, and the same one.
        assert parse(variant.name(wild), wild) == variant
        assert io.decode(difference(io.encode(mutant)[0], wild).applied(wild)) == mutant


def _shifted(text: str, by: int) -> str:
    reference, _, rest = text.rpartition(":p.") if ":p." in text else ("", "", text)
    moved = re.sub(r"\d+", lambda number: str(int(number[0]) + by), rest)
    return f"{reference}:p.{moved}" if reference else moved


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A2G", "A2G: the wild type has K at position 2, not A"),
        ("A30G", "A30G: position 30 lies outside of the wild type, which has 1 to 13 with offset=1"),
        ("A0G", "position 0 lies outside"),
        ("A3G:A3W", "A3G and A3W change the same site"),
        ("A3_A5del:A4G", "A3_A5del and A4G change the same site"),
        ("K2_A3insG:K2_A3insW", "change the same site"),
        ("A3_G6del:A4_A5insW", "A3_G6del and A4_A5insW change the same site"),
        ("A3", "'A3' is not a variant; write A24G,"),
        ("", "'' is not a variant"),
        ("A3G:", "'' in 'A3G:' is not a variant"),
        ("A3G D11N", "'A3G D11N' is not a variant"),
        ("A3X", "'X' is not one of the residues that have a score"),
        ("A3*", "'A3*' makes or moves a stop, which has no score"),
        ("p.Ala3Ter", "makes or moves a stop"),
        ("p.Ala3fs*5", "changes where the protein ends"),
        ("K2_A4insG", "an insertion stands between two neighbours"),
        ("A3_K2del", "2 comes before 3"),
        ("A3delA", "del is followed by residues"),
        ("K2_A3ins", "ins names no new residues"),
        ("K2_A3insala", "write the new residues as GS or as GlySer"),
        ("M1_W13del", "nothing is left of the protein"),
    ],
)
def test_a_variant_that_is_wrong_says_what_was_found(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(text, read_wild_type("MKAAAGLLKTDEW"))
    assert message in str(caught.value)


_EDITS = st.tuples(st.integers(0, 12), st.integers(0, 4), st.text("ACDGKL", max_size=4))


# An insertion that moves to where another one is.
@example([(5, 0, "G"), (6, 0, "A")])
@given(st.lists(_EDITS, min_size=1, max_size=3))
def test_the_normal_form_makes_the_same_mutant_and_reads_back(edits: list[tuple[int, int, str]]) -> None:
    """Edits of a repetitive wild type that do not touch each other, applied to its letters one after another."""
    wild = read_wild_type("MKAAAGLLKTDEW")
    apart: list[tuple[int, int, str]] = []
    for start, removed, inserted in sorted(edits):
        end = min(start + removed, len(wild))
        if (not apart or start > apart[-1][1]) and (end > start or inserted):
            apart.append((start, end, inserted))
    mutant = wild.sequence
    for start, end, inserted in reversed(apart):
        mutant = mutant[:start] + inserted + mutant[end:]
    assume(mutant)
    made = normalized([Edit(s, e - s, io.encode(text)[0].tobytes()) for s, e, text in apart], wild)
    assert io.decode(made.applied(wild)) == mutant
    again = parse(made.name(wild), wild)
    assert io.decode(again.applied(wild)) == mutant
    assert io.decode(difference(io.encode(mutant)[0], wild).applied(wild)) == mutant
    for edit in made.edits:
        assert wild.tokens[edit.start : edit.end].tobytes() != edit.inserted


_PIECES = (
    "A24G p. Ala 24 -3 G del ins delins dup _ : , ; ( ) [ ] = * Ter fs WT K2 A3 NP_1.1: X é ² ٣ \0 999999999 "
    "99999999999999999999"
)


@given(st.one_of(st.text(max_size=30), st.lists(st.sampled_from([" ", *_PIECES.split()]), max_size=8).map("".join)))
@settings(max_examples=1000)
def test_any_text_is_a_variant_or_an_error_that_is_short(text: str) -> None:
    wild, variant, said = read_wild_type("MKAAAGLLKTDEW"), None, ""
    try:
        variant = parse(text, wild)
    except DataError as error:
        said = str(error)
    assert len(said) < 1000
    assert variant is None or parse(variant.name(wild), wild) == variant


def test_a_wild_type_is_one_sequence_without_gaps(tmp_path: Path) -> None:
    path = tmp_path / "wt.fa"
    path.write_text(">tem first\nMKAA\nAG\n")
    wild = read_wild_type(str(path), 24)
    assert (wild.id, wild.sequence, wild.offset, wild.last) == ("tem", "MKAAAG", 24, 29)
    assert read_wild_type(("mine", "mka")).sequence == "MKA"
    for text, message in ((">a\nMK\n>b\nMK\n", "several records"), (">a\nMK-A\n", "wt.fa:2:3"), ("", "no record")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_wild_type(path)


def test_a_sequence_becomes_the_edit_that_makes_it() -> None:
    wild = read_wild_type("MKAAAGLLKTDEW")
    for mutant in (
        "MKAAAGLLKTDEW",
        "MKWAAGLLKTDEY",
        "MKAGLLKTDEW",
        "MKAAAGGSGSLLKTDEW",
        "WWW",
        "MKAAAGLLKTDEWW",
        "GMKAAAG",
    ):
        variant = difference(io.encode(mutant)[0], wild)
        assert io.decode(variant.applied(wild)) == mutant
        assert parse(variant.name(wild), wild) == variant
