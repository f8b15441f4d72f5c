"""Sequences written left to right: against a slow twin, in any company, and with the frequencies of the model."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commands import write_fasta
from conftest import LETTERS, small_config
from planted import MEMORY, STANDARD_TOKENS, PlantedEngine, log_table, random_table

import protperf.lm as lm
from protperf import io
from protperf.errors import ConfigError, DataError, DtypeError
from protperf.lm.alphabet import BOS, EOS, MASK, VOCAB_SIZE
from protperf.lm.engine import Engine
from protperf.lm.generation import causal
from protperf.lm.generation.causal import Written, write_sequences
from protperf.lm.generation.options import GenerateOptions
from protperf.lm.generation.sampling import Draws, forbidden, probabilities
from protperf.lm.loading import load_run
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.scoring.likelihood import score_records

A, C, D = 3, 4, 5
NOTHING = np.empty(0, np.uint8)


def written(
    engine: Engine, count: int, start: int = 0, prompt: np.ndarray = NOTHING, **options: object
) -> list[Written]:
    asked = GenerateOptions(**options)  # type: ignore[arg-type]
    return list(write_sequences(engine, prompt, 0, iter(range(start, start + count)), asked))


# -- Against a slow twin


def twin(table: np.ndarray, index: int, prompt: list[int], options: GenerateOptions) -> tuple[list[int], float, bool]:
    """One sequence, one token and one rule at a time."""
    draws = Draws(options.seed, 0, index, 0)
    memory, tokens, score = BOS % MEMORY, [], 0.0
    for token in prompt:
        score += float(np.float32(table[memory, token]))
        tokens.append(token)
        memory = (3 * memory + token) % MEMORY
    while len(tokens) < options.max_len:
        able = [t for t in STANDARD_TOKENS if not makes_repeat([*tokens, t], options.max_repeat)]
        able += [EOS] if len(tokens) >= options.min_len else []
        weights = {t: math.exp(float(np.float32(table[memory, t])) / options.temperature) for t in able}
        ranked = sorted(weights, key=lambda t: (-weights[t], t))[: options.top_k or VOCAB_SIZE]
        total = sum(weights[t] for t in ranked)
        nucleus, mass = [], 0.0
        for t in ranked:
            if mass >= options.top_p:
                break
            nucleus.append(t)
            mass += weights[t] / total
        number, mass = draws.next() * sum(weights[t] for t in nucleus), 0.0
        for token in sorted(nucleus):
            mass += weights[token]
            if number < mass:
                break
        if token == EOS:
            return tokens, score, True
        score += float(np.float32(table[memory, token]))
        tokens.append(token)
        memory = (3 * memory + token) % MEMORY
    return tokens, score, False


def makes_repeat(tokens: list[int], most: int) -> bool:
    """Whether the end is a unit of 1 to 4 residues that stands more than `most` times in a row."""
    return most > 0 and any(
        tokens[-unit * (most + 1) :] == tokens[-unit:] * (most + 1)
        for unit in range(1, 5)
        if len(tokens) >= unit * (most + 1)
    )


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 3.0, "min_len": 6},
        {"top_k": 1},
        {"top_k": 5},
        {"top_p": 0.3},
        {"top_p": 0.9, "top_k": 8, "temperature": 1.7},
        {"max_repeat": 1},
        {"max_repeat": 2, "top_k": 3, "min_len": 20},
    ],
    ids=str,
)
@pytest.mark.parametrize("prompt", [[], [A, C, D, 24, 27]], ids=["none", "prompt"])
def test_sequences_are_those_of_a_slow_twin(choices: dict[str, object], prompt: list[int]) -> None:
    table = random_table()
    options = GenerateOptions(max_len=40, **choices)  # type: ignore[arg-type]
    found = written(PlantedEngine(table), 70, prompt=np.array(prompt, np.uint8), max_len=40, **choices)
    assert len({bytes(each.tokens) for each in found}) > (1 if choices == {"top_k": 1} else 10) - 1
    for index, each in enumerate(found):
        tokens, score, has_end = twin(table, index, prompt, options)
        assert each.tokens.tolist() == tokens
        # X, the last token of the prompt, is context.
        score -= float(np.float32(table[MEMORY_BEFORE_X, 27])) if prompt else 0.0
        assert (each.index, each.has_end) == (index, has_end)
        assert each.score == pytest.approx(score, abs=1e-9)
        assert each.scored == len(tokens) - bool(prompt)


def memory_of(tokens: list[int]) -> int:
    memory = BOS
    for token in tokens:
        memory = (3 * memory + token) % MEMORY
    return memory


MEMORY_BEFORE_X = memory_of([A, C, D, 24])


# -- A function of seed and number


@pytest.mark.parametrize("width", [1, 2, 5, 33])
def test_sequences_do_not_depend_on_how_many_are_written_together(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PlantedEngine(random_table(1))
    wanted = written(engine, 60, max_len=30)
    monkeypatch.setattr(causal, "WIDTH", width)
    found = written(engine, 60, max_len=30)
    assert [(x.index, bytes(x.tokens), x.score) for x in found] == [(x.index, bytes(x.tokens), x.score) for x in wanted]


@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
def test_a_sequence_of_a_network_is_a_function_of_seed_and_number(attention: str) -> None:
    network = Network(small_config(attention=attention)).eval()
    network.embedding.weight.data *= 10
    engine = TorchEngine(network)
    prompt = np.array([A, C], np.uint8)
    wanted = {each.index: each for each in written(engine, 50, prompt=prompt, max_len=40)}
    for count, start in ((1, 0), (1, 37), (9, 30), (33, 17), (50, 0)):
        for each in written(engine, count, start, prompt, max_len=40):
            assert bytes(each.tokens) == bytes(wanted[each.index].tokens)
            assert each.score.hex() == wanted[each.index].score.hex()
    other = {bytes(each.tokens) for each in written(engine, 50, prompt=prompt, max_len=40, seed=43)}
    assert len(other & {bytes(each.tokens) for each in wanted.values()}) < 5


def test_a_sequence_of_the_native_engine_has_the_same_bits_in_any_company(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_run(runs["both"]).engine
    assert engine.name == "native"
    wanted = {each.index: each for each in written(engine, 40, max_len=40)}
    for width, count, start in ((32, 9, 21), (1, 3, 0), (7, 20, 20)):
        monkeypatch.setattr(causal, "WIDTH", width)
        for each in written(engine, count, start, max_len=40):
            assert bytes(each.tokens) == bytes(wanted[each.index].tokens)
            assert each.score.hex() == wanted[each.index].score.hex()


def test_numbers_of_a_counter_are_pinned_and_differ_by_every_word_of_it() -> None:
    """Sequences that were reported by their seed can be drawn again by later versions."""
    draws = Draws(42, 0, 0, 0)
    assert [draws.next() for _ in range(3)] == PINNED
    keys = list(itertools.product((0, 1), repeat=4))
    firsts = {Draws(*key).next() for key in keys}
    assert len(firsts) == len(keys)
    assert sorted(Draws(1, 2, 3, 4).permutation(20)) == list(range(20))


PINNED = [0.8201981478608876, 0.18924562408645496, 0.8676608148821462]


# -- Frequencies


def chi_square(counts: Counter[int], chances: dict[int, float]) -> tuple[float, float]:
    """The statistic, and a bound that it passes once in a million times (Wilson and Hilferty)."""
    total = sum(counts.values())
    assert set(counts) <= set(chances)
    found = sum((counts[t] - total * p) ** 2 / (total * p) for t, p in chances.items())
    freedom = len(chances) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3
    return found, bound


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({}, {A: 0.5, C: 0.3, D: 0.15, 6: 0.05}),
        ({"temperature": 0.5}, {A: 0.25 / 0.365, C: 0.09 / 0.365, D: 0.0225 / 0.365, 6: 0.0025 / 0.365}),
        ({"top_k": 2}, {A: 0.625, C: 0.375}),
        ({"top_p": 0.9}, {A: 0.5 / 0.95, C: 0.3 / 0.95, D: 0.15 / 0.95}),
        ({"top_p": 0.5}, {A: 1.0}),
        ({"temperature": 0.0}, {A: 1.0}),
    ],
    ids=str,
)
def test_residues_have_the_frequencies_of_the_model(choices: dict[str, object], expected: dict[int, float]) -> None:
    # A fifth of the model's probability is on what is never drawn.
    table = log_table({A: 0.4, C: 0.24, D: 0.12, 6: 0.04, MASK: 0.1, 27: 0.1})
    found = written(PlantedEngine(table), 100, min_len=50, max_len=50, max_repeat=0, **choices)
    counts = Counter(token for each in found for token in each.tokens.tolist())
    assert sum(counts.values()) == 5000
    if len(expected) == 1:
        assert set(counts) == set(expected)
        return
    statistic, bound = chi_square(counts, expected)
    assert statistic < bound


def test_lengths_have_the_distribution_of_the_end() -> None:
    found = written(PlantedEngine(log_table({A: 0.4, C: 0.4, EOS: 0.2})), 3000, max_len=200, max_repeat=0)
    # The first residue is always drawn, for no sequence is empty.
    counts = Counter(min(len(each.tokens), 12) for each in found)
    chances = {n: 0.2 * 0.8 ** (n - 1) for n in range(1, 12)}
    statistic, bound = chi_square(counts, {**chances, 12: 0.8**11})
    assert statistic < bound
    assert all(each.has_end for each in found if len(each.tokens) < 200)


# -- Rules


@pytest.mark.parametrize("most", [1, 2, 3, 7])
def test_no_unit_stands_more_often_in_a_row_than_allowed(most: int) -> None:
    """Under a model that would write little else."""
    table = np.log(np.full((MEMORY, VOCAB_SIZE), 1e-4))
    table[:, [A, C]] = math.log(0.49)
    pattern = re.compile(rf"(.{{1,4}}?)\1{{{most}}}")
    found = written(PlantedEngine(table), 40, min_len=60, max_len=60, max_repeat=most)
    for each in found:
        assert pattern.search(io.decode(each.tokens)) is None
    free = written(PlantedEngine(table), 40, min_len=60, max_len=60, max_repeat=0)
    assert any(pattern.search(io.decode(each.tokens)) for each in free)
    # What is allowed occurs.
    if most > 1:
        fewer = re.compile(rf"(.{{1,4}}?)\1{{{most - 1}}}")
        assert any(fewer.search(io.decode(each.tokens)) for each in found)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_what_is_forbidden_in_the_middle_is_what_a_search_finds(most: int) -> None:
    rng = np.random.default_rng(most)
    pattern = re.compile(rf"(?=(([AC]{{1,4}})\2{{{most}}}))")
    for _ in range(300):
        tokens = rng.choice([A, C], 14).tolist()
        place = int(rng.integers(14))
        tokens[place] = MASK

        def units(letter: str, tokens: list[int] = tokens, place: int = place) -> set[int]:
            text = "".join({A: "A", C: "C", MASK: letter}[token] for token in tokens)
            return {found.start() for found in pattern.finditer(text) if covers(found, place)}

        def covers(found: re.Match[str], place: int) -> bool:
            return found.start() <= place < found.start() + len(found[1])

        # With D there nothing repeats through the place; with A or C something may.
        assert not units("D")
        wanted = {token for token, letter in ((A, "A"), (C, "C")) if units(letter)}
        assert forbidden(tokens, place, most) == wanted


def test_a_prompt_is_kept_even_where_it_repeats_itself() -> None:
    prompt = np.array([A] * 20, np.uint8)
    for each in written(PlantedEngine(random_table()), 20, prompt=prompt, max_repeat=2, max_len=40):
        assert each.tokens[:20].tolist() == [A] * 20
        assert len(each.tokens) == 20 or each.tokens[20] != A


def test_only_standard_residues_are_drawn_and_none_ends_too_early() -> None:
    table = np.log(np.full(VOCAB_SIZE, 1e-6))
    table[[BOS, EOS, MASK, 23, 24, 25, 26, 27]] = math.log(0.12)
    found = written(PlantedEngine(table), 50, min_len=7, max_len=30)
    assert {token for each in found for token in each.tokens.tolist()} <= set(STANDARD_TOKENS)
    assert {len(each.tokens) for each in found} == {7}
    cut = written(PlantedEngine(log_table({A: 0.5, C: 0.5})), 3, max_len=9)
    assert [(len(each.tokens), each.has_end) for each in cut] == [(9, False)] * 3


def test_probabilities_sum_to_one_over_the_tokens_that_are_allowed() -> None:
    rng = np.random.default_rng(0)
    log_probs = rng.normal(0, 300, (50, VOCAB_SIZE))
    allowed = rng.random((50, VOCAB_SIZE)) < 0.3
    allowed[:, 5] = True
    for temperature, top_k, top_p in itertools.product((0.0, 1e-3, 1.0, 1e3), (None, 1, 100), (1e-9, 0.5, 1.0)):
        found = probabilities(log_probs, allowed, temperature, top_k, top_p)
        np.testing.assert_allclose(found.sum(-1), 1)
        assert not found[~allowed].any()
        if temperature == 0 or top_k == 1 or top_p < 1e-6:
            assert ((found > 0).sum(-1) == 1).all()


# -- Memory and laziness


def test_states_are_as_many_as_are_written_together_and_items_are_taken_as_needed() -> None:
    engine = PlantedEngine(random_table())
    taken = []

    def indices():  # type: ignore[no-untyped-def]
        for i in itertools.count():
            taken.append(i)
            yield i

    sequences = write_sequences(engine, NOTHING, 0, indices(), GenerateOptions(max_len=30))
    for i, each in enumerate(itertools.islice(sequences, 500)):
        assert each.index == i
        # A long sequence holds up those after it while the other places write on.
        assert len(taken) <= i + 1 + causal.WIDTH * 30
    assert max(engine.sizes) == causal.WIDTH + 1


# -- Networks and Python


@pytest.mark.parametrize("objective", ["causal", "both"])
@pytest.mark.parametrize("choices", [{}, {"temperature": 2.0, "top_p": 0.8}], ids=str)
def test_the_log_likelihood_is_that_of_score(objective: str, choices: dict[str, object], runs: dict[str, Path]) -> None:
    model = lm.load(runs[objective])
    found = list(model.generate(n=40, prompt="MXKB", max_len=50, seed=1, **choices))
    assert len({str(record.seq) for record in found}) == 40
    for record, row in zip(found, model.score(found), strict=True):
        assert str(record.seq).startswith("MXKB")
        assert record.annotations["ll"] == pytest.approx(row.ll, abs=1e-4)
        assert record.annotations["ppl"] == pytest.approx(row.ppl, rel=1e-5)
        assert record.annotations["len"] == len(record) == row.len
        fields = dict(part.split("=") for part in record.description.split()[1:])
        assert float(fields["ll"]) == pytest.approx(row.ll, abs=1e-4)
        assert fields["end"] == ("max_len" if len(record) == 50 else "eos")
        assert fields["prompt_len"] == "4"


def test_a_long_prompt_is_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(small_config()).eval()
    engine = TorchEngine(network)
    prompt = np.random.default_rng(0).integers(3, 23, 90).astype(np.uint8)
    monkeypatch.setattr("protperf.lm.inference.CHUNK", 17)
    for each in written(engine, 3, prompt=prompt, max_len=100):
        record = io.Record(0, "", "", each.tokens, 0, "", 0)
        (row,) = score_records(engine, [record], "ll")
        assert each.score == pytest.approx(row.ll, abs=1e-4)


def test_python_draws_as_it_is_asked(runs: dict[str, Path]) -> None:
    model = lm.load(runs["both"])
    many = model.generate(n=10**9, max_len=10)
    first = [next(many) for _ in range(3)]
    assert [record.id for record in first] == ["g0", "g1", "g2"]
    assert [str(r.seq) for r in model.generate(n=2, start=1, max_len=10)] == [str(r.seq) for r in first[1:]]
    with pytest.raises(ConfigError, match="top_p is 0"):
        model.generate(top_p=0.0)
    with pytest.raises(ConfigError, match="prompt 0 has 3 residues; max_len must be larger"):
        model.generate(prompt="MKV", max_len=3)


@pytest.mark.parametrize("text", ["MK\nTA", "MK\r\nTA\n", "MK\rTA"])
def test_text_that_may_be_several_sequences_is_refused_as_every_other_reading_does(
    text: str, runs: dict[str, Path]
) -> None:
    model = lm.load(runs["both"])
    readings = (model.score, model.scan, lambda x: model.variants(x, ["M1A"]), lambda x: model.generate(prompt=x))
    for read in readings:
        with pytest.raises(DtypeError, match="has line breaks, which may separate sequences or parts of one"):
            read(text)
    with pytest.raises(DtypeError, match="template has line breaks"):
        model.generate(template="MK\n_A", infill=True)
    (ended,), (bare,) = (model.generate(prompt=x, max_len=9) for x in ("MK\n", "MK"))
    assert ended.seq == bare.seq


def test_each_prompt_of_a_file_gets_its_sequences(runs: dict[str, Path], tmp_path: Path) -> None:
    model = lm.load(runs["both"])
    path = write_fasta(tmp_path / "prompts.fa", {"a": "MKV", "b": "WWC", "a2": "MKV"})
    found = list(model.generate(n=2, prompts=path, max_len=20))
    assert [record.id for record in found] == ["a/0", "a/1", "b/0", "b/1", "a2/0", "a2/1"]
    assert [str(record.seq)[:3] for record in found] == ["MKV", "MKV", "WWC", "WWC", "MKV", "MKV"]
    alone = [str(record.seq) for record in model.generate(n=2, prompt="MKV", max_len=20)]
    assert [str(record.seq) for record in found[:2]] == alone
    # The same prompt in another place is another one.
    assert [str(record.seq) for record in found[4:]] != alone
    (tmp_path / "none.fa").write_text("")
    with pytest.raises(DataError, match="has no prompts"):
        model.generate(prompts=tmp_path / "none.fa")


# -- Novelty


def test_excluded_sequences_are_drawn_again() -> None:
    engine = PlantedEngine(log_table({A: 0.5, C: 0.5}))
    refused = {(A, A), (A, C), (C, C)}
    options = GenerateOptions(min_len=2, max_len=2)
    usual = {tuple(each.tokens.tolist()) for each in written(engine, 50, min_len=2, max_len=2)}
    assert refused < usual

    def refuse(tokens: np.ndarray) -> bool:
        return tuple(tokens.tolist()) in refused

    found = list(write_sequences(engine, NOTHING, 0, iter(range(50)), options, refuse))
    assert {tuple(each.tokens.tolist()) for each in found} == {(C, A)}
    assert [each.index for each in found] == list(range(50))
    with pytest.raises(DataError, match="sequence 0 was one of the excluded sequences 100 times in a row"):
        list(write_sequences(engine, NOTHING, 0, iter(range(50)), options, lambda tokens: True))


def test_python_names_the_nearest_of_what_is_excluded(runs: dict[str, Path], tmp_path: Path) -> None:
    model = lm.load(runs["both"])
    plain = list(model.generate(n=3, max_len=30, min_len=20))
    path = write_fasta(tmp_path / "known.fa", {"whole": str(plain[1].seq), "longer": f"WW{plain[0].seq}WW"})
    found = list(model.generate(n=3, max_len=30, min_len=20, exclude=path))
    assert (found[0].annotations["nearest"], found[0].annotations["identity"]) == ("longer", 1.0)
    assert str(found[0].seq) == str(plain[0].seq)
    assert str(found[1].seq) != str(plain[1].seq)
    assert str(found[2].seq) == str(plain[2].seq)
    assert all(letter in LETTERS for record in found for letter in str(record.seq))
    (tmp_path / "none.fa").write_text("")
    with pytest.raises(DataError, match="has no sequences to exclude"):
        model.generate(exclude=tmp_path / "none.fa")
