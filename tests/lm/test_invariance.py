"""A score is a function of the sequence and the model: not of its batch, its place in it, chunks or threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from conftest import small_config

from protperf import io
from protperf.lm import inference
from protperf.lm.inference import CHUNK
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.scoring.likelihood import score_records
from protperf.lm.scoring.row import ScoreRow

LENGTHS = (1, 2, 3, 7, 15, 16, 17, 30, 31, 33, 63, 64, 65, 100, 127, 150, 199, 255, 300, 420, 599)
MAX_DIFFERENCE = 1e-5
"""Nats per residue that may lie between two ways of scoring without `deterministic`."""
THREADS = (1, 2, 3)


def records(lengths: tuple[int, ...] = LENGTHS) -> list[io.Record]:
    rng = np.random.default_rng(3)
    return [io.Record(i, f"r{i}", "", rng.integers(3, 23, n).astype(np.uint8), 0, "", 0) for i, n in enumerate(lengths)]


@pytest.fixture(params=["relu", "softmax", "exact"])
def network(request: pytest.FixtureRequest) -> Network:
    made = Network(small_config(attention=request.param)).eval()
    # Logits as spread as those of a trained model: those of a new one hardly differ, and nor would their errors.
    made.embedding.weight.data *= 10
    return made


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Sets the number of threads of torch and of the kernels."""
    before = torch.get_num_threads()

    def choose(number: int) -> None:
        torch.set_num_threads(number)
        monkeypatch.setenv("PROTPERF_NUM_THREADS", str(number))

    yield choose
    torch.set_num_threads(before)


def scored(network: Network, given: list[io.Record], method: str, **choices: object) -> dict[str, ScoreRow]:
    return {row.id: row for row in score_records(TorchEngine(network), given, method, **choices)}  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["ll", "pll"])
def test_deterministic_scores_have_equal_bits(network: Network, method: str, threads) -> None:  # type: ignore[no-untyped-def]
    given = records() if method == "ll" else records(LENGTHS[:10])
    threads(1)
    needed = {name: row.ll for name, row in scored(network, given, method, deterministic=True).items()}
    for number in THREADS:
        threads(number)
        for order, batch_tokens in ((given, 50), (given[::-1], 4096), (given[5:], 10**6), (given[:1] * 2 + given, 700)):
            found = scored(network, order, method, batch_tokens=batch_tokens, deterministic=True)
            assert all(row.ll.hex() == needed[name].hex() for name, row in found.items())


@pytest.mark.parametrize("method", ["ll", "pll"])
def test_scores_in_any_batch_differ_by_rounding_alone(network: Network, method: str, threads) -> None:  # type: ignore[no-untyped-def]
    given = records() if method == "ll" else records(LENGTHS[:10])
    threads(1)
    alone = scored(network, given, method, deterministic=True)
    worst = 0.0
    for number in THREADS:
        threads(number)
        for order, batch_tokens in ((given, 1), (given, 300), (given[::-1], 4096), (given, 10**6)):
            for name, row in scored(network, order, method, batch_tokens=batch_tokens).items():
                worst = max(worst, abs(row.ll_per_residue - alone[name].ll_per_residue))
    print(f"\n{network.config.attention}, {method}: at most {worst:.1e} nats per residue between any two ways")
    assert worst <= MAX_DIFFERENCE


def test_chunks_of_a_long_sequence_change_only_its_rounding(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    given = records((CHUNK + 300,))
    in_chunks = scored(network, given, "ll", deterministic=True)["r0"]
    monkeypatch.setattr(inference, "CHUNK", 10**6)
    whole = scored(network, given, "ll", deterministic=True)["r0"]
    monkeypatch.setattr(inference, "CHUNK", 97)
    monkeypatch.setattr(inference, "EXACT_CHUNK", 97)
    small = scored(network, given, "ll", deterministic=True)["r0"]
    worst = max(abs(one.ll_per_residue - whole.ll_per_residue) for one in (in_chunks, small))
    print(f"\n{network.config.attention}: at most {worst:.1e} nats per residue between chunks and the whole")
    assert worst <= MAX_DIFFERENCE
