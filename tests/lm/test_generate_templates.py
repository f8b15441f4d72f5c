"""Templates: what is fixed stays, blanks are filled in order, and sweeps draw from the joint distribution."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from commands import write_fasta
from conftest import LETTERS
from planted import PlantedMasked, log_table
from test_generate import chi_square

import protperf.lm as lm
from protperf import io
from protperf.errors import ConfigError
from protperf.lm.alphabet import EOS, MASK, VOCAB_SIZE
from protperf.lm.generation.options import GenerateOptions
from protperf.lm.generation.sampling import Draws
from protperf.lm.generation.template import Template, drawn_from, read_template, score_of

A, C, D = 3, 4, 5


def options(**choices: object) -> GenerateOptions:
    return GenerateOptions(**choices)  # type: ignore[arg-type]


def infill(text: str, **choices: object) -> tuple[Template, GenerateOptions]:
    asked = options(template=text, infill=True, **choices)
    return read_template(text, asked), asked


def resample(text: str, fixed: str, **choices: object) -> tuple[Template, GenerateOptions]:
    asked = options(template=text, fix_positions=fixed, **choices)
    return read_template(text, asked), asked


def draws(index: int) -> Draws:
    return Draws(42, 0, index, 0)


def uniform(tokens: np.ndarray, place: int) -> np.ndarray:
    return np.full(VOCAB_SIZE, -math.log(VOCAB_SIZE))


def test_blanks_are_filled_and_all_else_stays() -> None:
    text = "MK__VX_U_"
    template, asked = infill(text)
    assert template.drawn.tolist() == template.blanks.tolist() == [2, 3, 6, 8]
    found = {io.decode(drawn_from(PlantedMasked(uniform), template, asked, draws(i))) for i in range(30)}
    assert len(found) == 30
    for sequence in found:
        assert re.fullmatch(text.replace("_", f"[{LETTERS}]"), sequence)
    # The template is as it was.
    assert template.blanks.tolist() == [2, 3, 6, 8]


@pytest.mark.parametrize(("steps", "passes"), [(None, 10), (1, 1), (3, 3), (4, 4), (99, 10)])
@pytest.mark.parametrize("order", ["random", "certain"])
def test_blanks_are_filled_in_as_many_passes_as_are_asked_for(order: str, steps: int | None, passes: int) -> None:
    left = []

    def predict(tokens: np.ndarray, place: int) -> np.ndarray:
        left.append(int((tokens == MASK).sum()))
        return uniform(tokens, place)

    template, asked = infill("A__C________D", steps=steps, order=order)
    engine = PlantedMasked(predict)
    assert (drawn_from(engine, template, asked, draws(0)) != MASK).all()
    assert engine.passes == passes
    filled = -np.diff([*dict.fromkeys(left), 0])
    assert filled.sum() == 10
    assert filled.max() - filled.min() <= 1


def test_the_most_certain_blanks_come_first_and_later_ones_see_them() -> None:
    """Certainty grows with the place, and a residue follows its right neighbour in the alphabet."""
    seen = []

    def predict(tokens: np.ndarray, place: int) -> np.ndarray:
        seen.append("".join("_" if token == MASK else "x" for token in tokens))
        follows = tokens[place + 1] + 1 if place + 1 < len(tokens) and tokens[place + 1] != MASK else A
        row = np.full(VOCAB_SIZE, (0.5 - 0.05 * place) / VOCAB_SIZE)
        # A special token that is certain makes no position certain.
        row[EOS] = 0.4 if place == 0 else 0.0
        row[follows] = 0.5 + 0.05 * place
        return np.log(np.maximum(row, 1e-30))

    template, asked = infill("____", order="certain", temperature=0.0)
    found = drawn_from(PlantedMasked(predict), template, asked, draws(0))
    assert list(dict.fromkeys(seen)) == ["____", "___x", "__xx", "_xxx"]
    assert found.tolist() == [A + 3, A + 2, A + 1, A]


def test_a_random_order_takes_every_order_equally_often() -> None:
    orders: Counter[int] = Counter()
    for i in range(1200):
        visited = []

        def predict(tokens: np.ndarray, place: int, visited: list[str] = visited) -> np.ndarray:
            visited.append("".join("_" if token == MASK else "x" for token in tokens))
            return uniform(tokens, place)

        template, asked = infill("___")
        drawn_from(PlantedMasked(predict), template, asked, draws(i))
        orders[hash(tuple(dict.fromkeys(visited)))] += 1
    statistic, bound = chi_square(orders, dict.fromkeys(orders, 1 / 6))
    assert len(orders) == 6
    assert statistic < bound


JOINT = {(A, A): 0.4, (A, C): 0.1, (C, A): 0.05, (C, C): 0.25, (D, A): 0.15, (D, C): 0.05}


def test_sweeps_draw_from_the_joint_distribution() -> None:
    """Of two coupled positions, which start from a pair of small probability; a third one is fixed."""

    def predict(tokens: np.ndarray, place: int) -> np.ndarray:
        if tokens[place] != MASK:
            return uniform(tokens, place)
        other = int(tokens[2 - place])
        pairs = {pair[place // 2]: p for pair, p in JOINT.items() if pair[1 - place // 2] == other}
        return log_table({token: p / sum(pairs.values()) for token, p in pairs.items()})

    template, asked = resample("DWA", "2", steps=12)
    found = [drawn_from(PlantedMasked(predict), template, asked, draws(i)) for i in range(1500)]
    assert {int(tokens[1]) for tokens in found} == {int(template.tokens[1])}
    names = {pair: i for i, pair in enumerate(JOINT)}
    counts = Counter(names[int(tokens[0]), int(tokens[2])] for tokens in found)
    statistic, bound = chi_square(counts, {names[pair]: p for pair, p in JOINT.items()})
    assert statistic < bound


def test_each_sweep_visits_each_free_position_once_and_alone() -> None:
    visited = []

    def predict(tokens: np.ndarray, place: int) -> np.ndarray:
        if tokens[place] == MASK:
            visited.append(np.flatnonzero(tokens == MASK).tolist())
        return uniform(tokens, place)

    template, asked = resample("MKVACDE", "1-2,7", steps=3)
    drawn_from(PlantedMasked(predict), template, asked, draws(0))
    assert len(visited) == 12
    orders = [tuple(place for (place,) in visited[start : start + 4]) for start in (0, 4, 8)]
    assert all(sorted(order) == [2, 3, 4, 5] for order in orders)
    assert len(set(orders)) > 1


def test_blanks_of_a_template_are_filled_before_the_sweeps() -> None:
    template, asked = resample("M__AC", "1,4-5", steps=1)
    engine = PlantedMasked(uniform)
    found = io.decode(drawn_from(engine, template, asked, draws(0)))
    assert re.fullmatch(f"M[{LETTERS}]{{2}}AC", found)
    assert engine.passes == 4


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("way", ["blanks", "one pass", "sweeps"])
def test_no_unit_stands_more_often_in_a_row_than_allowed(way: str, most: int) -> None:
    table = np.full(VOCAB_SIZE, 1e-4)
    table[[A, C]] = 0.49
    row = np.log(table)
    pattern = re.compile(rf"(.{{1,4}}?)\1{{{most}}}")
    if way == "sweeps":
        template, asked = resample("DEFGHDEFGHIKLMNPQRSTV", "1,11", max_repeat=most)
    else:
        template, asked = infill("D____C_______A________", max_repeat=most, steps=None if way == "blanks" else 1)
    for i in range(20):
        found = drawn_from(PlantedMasked(lambda tokens, place: row), template, asked, draws(i))
        assert pattern.search(io.decode(found)) is None


def test_the_score_is_that_of_the_drawn_positions_each_masked_alone() -> None:
    def predict(tokens: np.ndarray, place: int) -> np.ndarray:
        weights = np.arange(1.0, VOCAB_SIZE + 1) + place
        weights[tokens[place - 1]] += 5
        return np.log(weights / weights.sum())

    template, asked = infill("MK__VV_")
    engine = PlantedMasked(predict)
    found = drawn_from(engine, template, asked, draws(0))
    wanted = 0.0
    for place in (2, 3, 6):
        masked = found.copy()
        masked[place] = MASK
        wanted += predict(masked, place)[found[place]]
    assert score_of(engine, found, template) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"template": "MKV", "infill": True}, "template has no _ to fill"),
        ({"template": "MKV", "fix_positions": "1-3"}, "template has no position that is not fixed"),
        ({"template": "MKV", "fix_positions": "2-4"}, "fix_positions: 4 is past the end of the template, which has 3"),
        ({"template": "MK_", "fix_positions": "3"}, "position 3 of the template is a _, which cannot be kept"),
        ({"template": "MK-V_", "infill": True}, "has gaps or a stop"),
        ({"template": "MKV_*", "infill": True}, "has gaps or a stop"),
        ({"infill": True}, "infill needs a template"),
        ({"fix_positions": "1"}, "fix_positions needs a template"),
        ({"template": "MK_"}, "add infill or fix_positions"),
        ({"template": "MK_", "infill": True, "fix_positions": "1"}, "infill and fix_positions exclude each other"),
        ({"template": "MK_", "infill": True, "prompt": "MK"}, "prompt and template exclude each other"),
        ({"template": "MK_", "fix_positions": "3-1"}, "'3-1' is not a position or a range; write 1-30,55"),
        ({"template": "MK_", "fix_positions": "0"}, "'0' is not a position"),
        ({"min_len": 5, "max_len": 4}, "min_len is larger than max_len"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(choices: dict[str, object], message: str, runs: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        lm.load(runs["both"]).generate(**choices)


def test_a_model_does_what_it_was_trained_for_and_names_it(runs: dict[str, Path]) -> None:
    masked, causal = lm.load(runs["masked"]), lm.load(runs["causal"])
    with pytest.raises(ConfigError, match=r"trained with masks only .* use infill or fix_positions with template"):
        masked.generate(prompt="M")
    with pytest.raises(ConfigError, match=r"reads left to right only .* or start with prompt"):
        causal.generate(template="MK_", infill=True)
    (found,) = masked.generate(template="MK_V", infill=True)
    assert re.fullmatch(f"MK[{LETTERS}]V", str(found.seq))
    assert found.annotations["pll"] == pytest.approx(-math.log(found.annotations["ppl"]), rel=1e-6)


def test_a_filled_template_is_a_function_of_seed_and_number(runs: dict[str, Path], tmp_path: Path) -> None:
    model = lm.load(runs["both"])
    path = write_fasta(tmp_path / "t.fa", {"t": "MKVACDEFGHIKLMNPQRST"})
    for choices in ({"template": "MKV___WW__", "infill": True}, {"template": str(path), "fix_positions": "1-12"}):
        wanted = [str(record.seq) for record in model.generate(n=6, **choices)]
        assert len(set(wanted)) == 6
        assert [str(record.seq) for record in model.generate(n=2, start=3, **choices)] == wanted[3:5]
        assert all(text.startswith("MKV") for text in wanted)
        assert {str(record.seq) for record in model.generate(n=6, seed=1, **choices)} != set(wanted)


def test_a_template_that_was_excluded_is_drawn_again(runs: dict[str, Path], tmp_path: Path) -> None:
    model = lm.load(runs["masked"])
    first, second = (str(record.seq) for record in model.generate(n=2, template="MK_", infill=True))
    path = write_fasta(tmp_path / "known.fa", {"a": first})
    again, other = (str(record.seq) for record in model.generate(n=2, template="MK_", infill=True, exclude=path))
    assert again != first
    assert other == second or second == first


def test_every_range_of_positions_is_read() -> None:
    for first, last in itertools.combinations_with_replacement(range(1, 7), 2):
        if last - first < 5:
            template, _ = resample("MKVACD", f"{first}-{last}")
            assert template.drawn.tolist() == [i for i in range(6) if not first <= i + 1 <= last]
    assert resample("MKVACD", " 1-2, 4 ,6")[0].drawn.tolist() == [2, 4]
