"""A moving average of the weights, and the end of a run that no longer gets better."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from training import final_digests, metrics, small_options, synthetic, trainer

from protperf.lm.loading import load_run
from protperf.lm.storage import checkpoint, tensor_file
from protperf.lm.storage.expected import ExpectedTensors
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.validation import Validation


def stop_at(one: Any, step: int) -> None:
    one.fit(lambda line: setattr(one, "stop_signal", 15 if line["step"] == step else None))


def test_the_average_is_that_of_the_weights_of_each_step(tmp_path: Path) -> None:
    fasta = synthetic(tmp_path / "in.fa")
    plain = trainer(tmp_path / "plain", fasta, small_options())
    averaged = trainer(tmp_path / "averaged", fasta, small_options(ema=0.8))
    name = "blocks.0.down.weight"
    expected = plain.loop.network.get_parameter(name).detach().double()
    for step in range(1, 6):
        assert plain.loop.step() == averaged.loop.step()
        decay = min(0.8, step / (step + 10))
        expected = decay * expected + (1 - decay) * plain.loop.network.get_parameter(name).detach().double()
    assert averaged.loop.average is not None
    torch.testing.assert_close(averaged.loop.average.weights[name].double(), expected, rtol=1e-6, atol=1e-7)
    parameters = averaged.loop.network.get_parameter(name), plain.loop.network.get_parameter(name)
    assert torch.equal(*parameters)
    with averaged.loop.average.in_network():
        torch.testing.assert_close(parameters[0].double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(*parameters)


def test_a_run_with_an_average_goes_on_bit_for_bit_and_answers_with_it(tmp_path: Path) -> None:
    fasta, options = synthetic(tmp_path / "in.fa"), small_options(ema=0.9, steps=8)
    whole = trainer(tmp_path / "whole", fasta, options)
    figures = whole.fit(lambda line: None)
    stop_at(trainer(tmp_path / "cut", fasta, options), 4)
    again = trainer(tmp_path / "cut", fasta, options)
    again.restore(checkpoint.verify(tmp_path / "cut" / "step-4"))
    assert again.fit(lambda line: None) == figures
    assert final_digests(tmp_path / "cut") == final_digests(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    step = checkpoint.verify(tmp_path / "whole" / "step-8")
    stored = tensor_file.read_tensors(step.path / "model.safetensors", ExpectedTensors(whole.config).network)
    assert whole.loop.average is not None
    assert all(torch.equal(stored[name], value) for name, value in whole.loop.average.weights.items())
    assert load_run(step.path).engine.config == whole.config


@pytest.mark.parametrize(
    ("losses", "patience", "ends"), [([3, 2, 2.5, 2, 1, 1, 1], 2, 4), ([3, 2, 2.5, 1, 2, 3], 2, 6)]
)
def test_patience_ends_a_run_after_validations_without_a_better_one(
    losses: list[float], patience: int, ends: int, tmp_path: Path
) -> None:
    fasta, options = synthetic(tmp_path / "in.fa"), small_options(patience=patience)
    found = iter([{"val_loss": loss, "unigram_perplexity": 20.0} for loss in losses])
    with mock.patch.object(Validation, "measure", side_effect=found):
        one = trainer(tmp_path / "run", fasta, options)
        assert one.fit(lambda line: None)["val_loss"] == min(losses[:ends])
        assert (one.loop.progress.step, one.loop.progress.best_step) == (ends, losses.index(min(losses[:ends])) + 1)
    again = trainer(tmp_path / "run", fasta, options)
    again.restore(checkpoint.verify(tmp_path / "run" / f"step-{ends}"))
    assert again.loop.finished()
    assert not trainer(tmp_path / "run", fasta, small_options(patience=patience + 1)).loop.finished()


def test_a_run_from_before_there_was_a_choice_has_neither() -> None:
    values = {
        name: value for name, value in TrainOptions(steps=1).to_mapping().items() if name not in ("ema", "patience")
    }
    old = TrainOptions.from_mapping(values)
    assert (old.ema, old.patience) == (0.0, 0)
