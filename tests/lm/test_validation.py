"""Validation reads packed batches, gives the figures that one sequence at a time gives, and never counts nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from commands import error_line, in_process, write_fasta
from conftest import LETTERS, small_config
from torch.nn import functional
from training import OPTIONS, synthetic

from protperf.errors import DataError
from protperf.lm.alphabet import FIRST_RESIDUE, MASK, NUM_STANDARD
from protperf.lm.baselines import ngram
from protperf.lm.data import batches
from protperf.lm.data.cluster import packed
from protperf.lm.data.store import TokenStore, read_store, split
from protperf.lm.data.stream import generator
from protperf.lm.model.network import CAUSAL, MASKED, Network
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.run import train_run
from protperf.lm.training.trigram import trigram_perplexity
from protperf.lm.training.validation import MAX_TOKENS, Validation
from protperf.lm.training.verdict import perplexity, verdict

CPU = torch.device("cpu")


def store(lengths: list[int], seed: int = 0, letters: str = LETTERS + "XU") -> TokenStore:
    """Random proteins of some lengths."""
    rng = np.random.default_rng(seed)
    residues = [FIRST_RESIDUE + LETTERS.index(c) if c in LETTERS else {"U": 23, "X": 28}[c] for c in letters]
    tokens = rng.choice(residues, sum(lengths)).astype(np.uint8)
    return TokenStore.packed(tokens, np.cumsum([0, *lengths]).astype(np.int64))


def one_by_one(network: Network, held: TokenStore, frequencies: Any, crop: int) -> dict[str, float]:
    """The definition: mean negative log-likelihoods over the twenty residues, a forward pass for each sequence."""
    sums = {CAUSAL: [0.0, 0.0, 0], MASKED: [0.0, 0.0, 0]}
    for i in range(len(held)):
        batch = batches.build(held, np.array([i]), crop, 0, 0)
        for mode in (CAUSAL, MASKED):
            tokens = batch.tokens
            if mode == CAUSAL:
                sites, targets = batches.causal_targets(batch)
            else:
                tokens, sites, targets = batches.mask(batch, generator(0, 3, i))
                tokens[sites] = MASK
            with torch.no_grad():
                logits = network(torch.from_numpy(tokens), torch.from_numpy(batch.cu_seqlens), mode)
            log_probs = functional.log_softmax(logits[torch.from_numpy(sites)], -1)
            for row, target in enumerate(targets.tolist()):
                if FIRST_RESIDUE <= target < FIRST_RESIDUE + NUM_STANDARD:
                    sums[mode][0] -= float(log_probs[row, target])
                    sums[mode][1] -= math.log(frequencies[target - FIRST_RESIDUE])
                    sums[mode][2] += 1
    causal, masked = sums[CAUSAL], sums[MASKED]
    main = masked if network.config.objective == "masked" else causal
    return {
        "val_loss": main[0] / main[2],
        "unigram_perplexity": math.exp(main[1] / main[2]),
        "val_perplexity": math.exp(causal[0] / causal[2]),
        "val_perplexity_masked": math.exp(masked[0] / masked[2]),
    }


@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
@pytest.mark.parametrize("objective", ["both", "causal", "masked"])
def test_packed_figures_are_those_of_one_sequence_at_a_time(objective: str, attention: str) -> None:
    held = store([1, 70, 5, 33, 2, 150, 64, 1, 17])
    network = Network(small_config(objective=objective, attention=attention)).eval()
    frequencies = store([500], 1, LETTERS).unigram()
    expected = one_by_one(network, held, frequencies, 100)
    for budget in (1, 64, 10_000):
        figures = Validation(held, frequencies, objective, 100, budget, CPU).measure(network)
        assert set(figures) == set(expected) - {"causal": {"val_perplexity_masked"}, "masked": {"val_perplexity"}}.get(
            objective, set()
        )
        for name, value in figures.items():
            assert value == pytest.approx(expected[name], rel=2e-6), name


def test_many_short_sequences_take_few_forward_passes() -> None:
    """6,000 peptides, as 2 % of 300,000 are: it was a pass for each, and longer than the training."""
    held = store([20] * 6000)
    network = Network(small_config())
    with mock.patch.object(network, "forward", wraps=network.forward) as forward:
        Validation(held, held.unigram(), "both", 1024, 4096, CPU).measure(network)
    read = sum(len(call.args[0]) for call in forward.call_args_list)
    assert MAX_TOKENS < read / 2 <= MAX_TOKENS + 22
    assert forward.call_count <= 2 * (MAX_TOKENS // (4096 - 22) + 1)
    assert max(len(call.args[0]) for call in forward.call_args_list) <= 4096


def test_validation_leaves_the_network_in_its_mode() -> None:
    held = store([20] * 3)
    network = Network(small_config())
    validation = Validation(held, held.unigram(), "both", 1024, 4096, CPU)
    for training in (True, False):
        network.train(training)
        validation.measure(network)
        assert network.training is training


NOTHING = {"a": "XXXXX", "b": "BZJX"}


@pytest.mark.parametrize("objective", ["both", "causal", "masked"])
def test_a_held_out_file_with_nothing_to_score_is_refused(objective: str, fasta: Path, tmp_path: Path) -> None:
    """It gave a loss of 0, which no later step could beat."""
    held = write_fasta(tmp_path / "held.fa", NOTHING)
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--steps", 1, "--objective", objective]
    result = in_process(*words, "--validate", held)
    assert result.returncode == 1
    assert error_line(result).startswith(f"{held}: it cannot be scored, for lack of any of the twenty residues")
    assert "--validate" in error_line(result)
    assert not (tmp_path / "run").exists()


def test_a_held_out_part_with_nothing_to_score_is_refused(tmp_path: Path) -> None:
    sequences = {f"x{i}": "X" * (i + 1) for i in range(40)} | {"a": "MKVACDEF"}
    path = write_fasta(tmp_path / "in.fa", sequences)
    seed = next(s for s in range(99) if not split(read_store(path), 0.1, s)[1].counts()[: FIRST_RESIDUE + 20].any())
    with pytest.raises(DataError, match=r"in\.fa: \d+ sequences? \(\d+ residues\) held out of it cannot be scored"):
        train_run(
            path, tmp_path / "run", small_config(), TrainOptions(**{**OPTIONS, "seed": seed, "hold_out": "random"})
        )
    assert not (tmp_path / "run").exists()


def test_training_sequences_with_nothing_to_learn_are_refused(fasta: Path, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "in.fa", NOTHING)
    with pytest.raises(DataError, match=r"in\.fa: holds none of the twenty residues"):
        train_run(path, tmp_path / "run", small_config(), TrainOptions(**OPTIONS), validate=fasta)


def test_what_cannot_be_scored_is_never_the_best(tmp_path: Path, fasta: Path) -> None:
    held = store([3, 4], letters="X")
    figures = Validation(held, store([9], 0, LETTERS).unigram(), "both", 100, 100, CPU).measure(Network(small_config()))
    assert math.isnan(figures["val_loss"])
    assert not figures["val_loss"] < math.inf


@pytest.mark.parametrize(("loss", "expected"), [(2.5, math.exp(2.5)), (709.0, math.exp(709.0)), (710.0, math.inf)])
def test_a_perplexity_too_large_for_a_number_is_infinite(loss: float, expected: float) -> None:
    assert perplexity(loss) == expected


def test_a_run_that_learnt_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 steps on a busy machine reached 16.950, where residue frequencies give 16.956, and no word of it."""
    for loss in (math.log(16.950), 3.5, math.nan):
        found = verdict(tmp_path, 128, {"val_loss": loss, "unigram_perplexity": 16.956})
        assert found.learnt is None
        assert "128 steps taught the model little or nothing" in str(found.warning)
    fasta = synthetic(tmp_path / "in.fa")
    outcome = train_run(fasta, tmp_path / "short", small_config(), TrainOptions(**{**OPTIONS, "steps": 2}))
    figures = outcome.figures
    assert outcome.remark is not None
    assert f"{math.exp(figures['val_loss']):.3f}, that of residue frequencies alone" in outcome.remark
    assert f"{figures['unigram_perplexity']:.3f}" in outcome.remark
    assert "2 steps" in outcome.remark
    assert all(way in outcome.remark for way in ("time", "size", "machine"))


def test_a_run_that_learnt_something_does_not(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "in.fa", {f"p{i}": "ACDEFGHIKLMNPQRSTVWY"[i % 20 :] + "ACDE" * 8 for i in range(40)})
    options = TrainOptions(**{**OPTIONS, "steps": 60, "lr": 1e-2, "checkpoint_every": 60})
    outcome = train_run(path, tmp_path / "run", small_config(objective="causal"), options)
    assert outcome.figures["val_perplexity"] < 0.9 * outcome.figures["unigram_perplexity"]
    assert outcome.remark is None
    assert "it learnt" in outcome.facts()[-1]


@pytest.mark.parametrize(
    ("perplexity", "said"),
    [(16.0, "0.06 nats per residue beyond residue frequencies (perplexity 16.00, they 17.00), which is little"),
     (5.0, "1.22 nats per residue beyond residue frequencies (perplexity 5.00, they 17.00)")],
)  # fmt: skip
def test_what_was_learnt_is_said_in_nats(perplexity: float, said: str, tmp_path: Path) -> None:
    found = verdict(tmp_path, 9, {"val_loss": math.log(perplexity), "unigram_perplexity": 17.0, "val_perplexity": 1.0})
    assert found.warning is None
    assert str(found.learnt).startswith(f"it learnt {said}")
    assert (", which is little" in str(found.learnt)) == (perplexity == 16.0)


def test_a_model_that_counting_beats_is_not_praised(tmp_path: Path) -> None:
    figures = {"val_loss": math.log(15.0), "unigram_perplexity": 17.0}
    good, bad = (str(verdict(tmp_path, 9, figures, trigrams).learnt) for trigrams in (15.5, 14.5))
    assert good.endswith("(perplexity 15.00, they 17.00, trigrams 15.50)")
    assert bad.endswith("trigrams 14.50), which is little: train for longer before you trust its answers")


def test_the_perplexity_of_trigrams_is_that_of_their_probabilities() -> None:
    train, held = store([300, 5, 80, 2], 3), store([40, 1, 17], 4)
    log_probs, _ = ngram.fit(ngram.count_packed(*packed(train), 3))
    border, nats = ngram.BORDER, []
    for i in range(len(held)):
        symbols = [border, border, *ngram.symbols_of(held.sequence(i)).tolist()]
        for a, b, c in zip(symbols, symbols[1:], symbols[2:], strict=False):
            if c < NUM_STANDARD:
                nats.append(-log_probs[a * ngram.NUM_SYMBOLS + b, c])
    assert trigram_perplexity(train, held) == pytest.approx(math.exp(np.mean(nats)), rel=1e-12)
    assert math.isnan(trigram_perplexity(train, store([3], letters="X")))


def test_a_masked_half_that_learnt_nothing_is_named(tmp_path: Path) -> None:
    """Four minutes on a proteome: 17.82 where frequencies give 17.80, and the causal half learnt."""
    figures = {"val_loss": 2.0, "unigram_perplexity": 17.80, "val_perplexity": math.exp(2.0)}
    assert verdict(tmp_path, 9, {**figures, "val_perplexity_masked": 17.0}).warning is None
    warning = str(verdict(tmp_path, 9, {**figures, "val_perplexity_masked": 17.82}).warning)
    assert "the next residue, but not a masked one: that perplexity is 17.820" in warning
    assert "objective='causal'" in warning


def test_the_command_warns_of_a_run_that_learnt_nothing_unless_it_is_quiet(fasta: Path, tmp_path: Path) -> None:
    words = ["train", "--fasta", fasta, "--steps", 1, "--batch-tokens", 100, "-o"]
    messages = in_process(*words, tmp_path / "run").stderr.decode()
    assert f"protperf: warning: {tmp_path}/run: 1 step taught the model little or nothing" in messages
    assert "train for longer (--time, --epochs or --steps), choose a smaller --size" in messages
    assert in_process(*words, tmp_path / "quiet", "-q").stderr == b""
