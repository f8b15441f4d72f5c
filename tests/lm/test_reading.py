"""How training reads its sequences: directions, starts and weights, each a function of the seed and the place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config
from training import small_options, synthetic

from protperf.errors import ConfigError
from protperf.lm.alphabet import BOS, EOS
from protperf.lm.data import batches
from protperf.lm.data.reading import PLAIN, Reading, read
from protperf.lm.data.store import read_store, split
from protperf.lm.data.stream import generator
from protperf.lm.model.network import CAUSAL, MASKED, Network
from protperf.lm.training.feed import Feed
from protperf.lm.training.progress import Progress
from protperf.lm.training.validation import Validation

FRAMED = batches.frame(np.arange(3, 23, dtype=np.uint8))
CPU = torch.device("cpu")


def readings(reading: Reading) -> list[np.ndarray]:
    return [read(FRAMED, reading, generator(1, 7, i)) for i in range(2000)]


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


def test_half_of_the_readings_go_backwards_from_eos_to_bos() -> None:
    found = readings(Reading("both"))
    assert all(np.array_equal(each, FRAMED if each[0] == BOS else FRAMED[::-1]) for each in found)
    # Four standard deviations of 2,000 throws of a coin.
    assert abs(share([each[0] == EOS for each in found]) - 0.5) < 4 * 0.5 / 2000**0.5
    assert all(read(FRAMED, PLAIN, generator(i)) is FRAMED for i in range(3))


@pytest.mark.parametrize("directions", ["forward", "both"])
def test_a_varied_start_leaves_out_residues_or_has_others_in_front_and_keeps_the_end(directions: str) -> None:
    later = foreign = 0
    for each in readings(Reading(directions, "varied")):
        whole = FRAMED if each[0] == BOS else FRAMED[::-1]
        rest = min(len(each), len(whole)) - 1
        assert rest >= 11
        assert np.array_equal(each[-rest:], whole[-rest:])
        later += len(each) < len(whole)
        foreign += len(each) > len(whole)
        assert set(each[1:-rest].tolist()) <= set(FRAMED[1:-1].tolist())
    # Of those that may leave out 0 to 10 residues, one in eleven leaves out none.
    assert abs(later / 2000 - 0.375 * 10 / 11) < 4 * 0.5 / 2000**0.5
    assert abs(foreign / 2000 - 0.125) < 4 * 0.5 / 2000**0.5


@pytest.mark.parametrize("length", [0, 1, 2])
def test_the_shortest_sequences_can_be_read_in_every_way(length: int) -> None:
    framed = batches.frame(np.full(length, 5, np.uint8))
    for i in range(200):
        each = read(framed, Reading("both", "varied"), generator(i))
        assert {each[0], each[-1]} == {BOS, EOS}


def test_an_epoch_reads_each_sequence_with_the_probability_of_its_weight() -> None:
    lengths, weights = np.full(6, 30), np.array([1.0, 0.25, 0.25, 0.5, 0.01, 0.99])
    counts = np.zeros(6)
    for epoch in range(1000):
        drawn = np.concatenate(list(batches.epoch_plan(lengths, 64, 100, 3, epoch, weights)))
        assert len(set(drawn.tolist())) == len(drawn) == 3
        counts[drawn] += 1
    assert (np.abs(counts / 1000 - weights) <= 4 * np.sqrt(weights * (1 - weights) / 1000)).all()
    # Less than one sequence in all: an epoch is never empty.
    assert np.concatenate(list(batches.epoch_plan(lengths[:2], 64, 100, 3, 0, np.array([1e-9, 1e-8])))).tolist() == [1]


def test_a_backward_reading_predicts_bos_at_its_end() -> None:
    batch = batches.Batch(FRAMED[::-1].copy(), np.array([0, len(FRAMED)]))
    positions, targets = batches.causal_targets(batch)
    assert positions.tolist() == list(range(21))
    assert targets.tolist() == [*range(22, 2, -1), BOS]


def test_masked_readings_are_forward(tmp_path: Path) -> None:
    store = read_store(synthetic(tmp_path / "proteins.fasta"))
    feed = Feed(store, small_options(weights="relatives"), "both", CPU, "both")
    for mode, expected in ((CAUSAL, {BOS, EOS}), (MASKED, {BOS})):
        progress = Progress()
        firsts: set[int] = set()
        for _ in range(feed.num_batches(0)):
            batch = feed.next(progress, mode, 0)
            firsts |= set(batch.tokens[batch.cu_seqlens[:-1]].tolist())
        assert firsts == expected


def test_validation_averages_both_readings(tmp_path: Path) -> None:
    store = read_store(synthetic(tmp_path / "proteins.fasta"))
    _, held = split(store, 0.2, 1)
    config = small_config(objective="causal", directions="both")
    network = Network(config)
    backward = [batches.frame(held.sequence(i))[::-1][1:-1] for i in range(len(held))]
    found = Validation(held, store.unigram(), "causal", 100, 200, CPU, "both").measure(network)
    losses = [Validation(held, store.unigram(), "causal", 100, 200, CPU).measure(network)["val_loss"]]
    nats = count = 0.0
    for residues in backward:
        tokens = torch.tensor([EOS, *residues.tolist(), BOS])
        logits = torch.log_softmax(network(tokens, torch.tensor([0, len(tokens)]), CAUSAL).detach(), -1)
        nats -= float(logits[torch.arange(len(residues)), tokens[1:-1]].sum())
        count += len(residues)
    losses.append(nats / count)
    assert found["val_loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)


def test_both_directions_need_a_causal_objective() -> None:
    with pytest.raises(ConfigError, match="directions is both, but objective is masked"):
        small_config(objective="masked", directions="both")
