"""`train --schedule`: the learning rate by step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from training import small_options, synthetic, trainer

from protperf.lm.training.options import SCHEDULES, TrainOptions
from protperf.lm.training.schedule import learning_rate

STEPS, WARMUP, PEAK = 1100, 100, 2e-3


def rates(name: str, total: int | None = STEPS) -> list[float]:
    options = TrainOptions(steps=STEPS, warmup=WARMUP, lr=PEAK, schedule=name)
    return [learning_rate(options, step, total, None) / PEAK for step in range(STEPS + 1)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_it_rises_to_the_peak_and_never_again(name: str) -> None:
    found = rates(name)
    assert found[:WARMUP] == [pytest.approx((step + 1) / (WARMUP + 1)) for step in range(WARMUP)]
    assert found[WARMUP] == 1.0
    assert sorted(found[WARMUP:], reverse=True) == found[WARMUP:]
    # Before the number of steps of a timed run is known, nothing falls.
    assert set(rates(name, None)[WARMUP:]) == {1.0}


@pytest.mark.parametrize(
    ("name", "quarter", "late", "end"),
    [
        ("cosine", 0.1 + 0.45 * (1 + math.cos(math.pi / 4)), 0.1 + 0.45 * (1 + math.cos(0.9 * math.pi)), 0.1),
        ("linear", 0.775, 0.19, 0.1),
        ("wsd", 1.0, 0.55, 0.1),
        ("constant", 1.0, 1.0, 1.0),
    ],
)
def test_each_falls_in_its_own_way(name: str, quarter: float, late: float, end: float) -> None:
    found = rates(name)
    assert [found[350], found[1000], found[STEPS]] == pytest.approx([quarter, late, end])


def test_wsd_is_constant_until_the_last_fifth() -> None:
    assert [step for step, rate in enumerate(rates("wsd")) if rate > 1 - 1e-9] == list(range(WARMUP, 901))


def test_a_run_follows_the_schedule_that_it_was_given(tmp_path: Path) -> None:
    options = small_options(steps=8, schedule="linear", warmup=0)
    trainer(tmp_path / "run", synthetic(tmp_path / "in.fa"), options).fit(lambda line: None)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    found = [line["lr"] for line in lines if "lr" in line]
    assert found == [pytest.approx(1e-3 * (1 - 0.9 * step / 8)) for step in range(8)]
