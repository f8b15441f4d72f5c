"""Trainings whose matrix products are rounded to bf16: close to float32, kept in the run, never in what is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config
from test_engines import batch, gradients, trained
from training import metrics, small_options, synthetic, trainer

from protperf import build_info
from protperf.errors import ConfigError
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.network import CAUSAL, Network
from protperf.lm.storage import checkpoint

UNIT = 2.0**-8
"""A unit of bf16, relative."""


@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
def test_loss_and_gradients_are_those_of_float32_within_the_rounding_of_bf16(attention: str) -> None:
    config = ModelConfig.from_size("nano", attention=attention)
    (loss, found), (needed_loss, needed) = (
        gradients(Network(config, precision=precision).train(), CAUSAL) for precision in ("bf16", "f32")
    )
    assert 0 < abs(loss / needed_loss - 1) < UNIT
    norm = sum(float(g.norm()) ** 2 for g in needed.values()) ** 0.5
    assert 0 < sum(float((found[name] - needed[name]).norm()) ** 2 for name in needed) ** 0.5 < 4 * UNIT * norm


def test_evaluation_rounds_nothing() -> None:
    config = small_config()
    tokens, borders, positions, targets = batch()
    with torch.no_grad():
        found = {
            (precision, is_training): float(
                Network(config, precision=precision)
                .train(is_training)
                .loss(tokens, borders, CAUSAL, positions, targets)
            )
            for precision in ("f32", "bf16")
            for is_training in (True, False)
        }
    assert found["bf16", False] == found["f32", False] == found["f32", True] != found["bf16", True]


@pytest.mark.parametrize("attention", ["relu", "exact"])
def test_a_loss_curve_is_near_that_of_float32(tmp_path: Path, attention: str) -> None:
    curves = []
    for precision in ("f32", "bf16"):
        (folder := tmp_path / precision).mkdir()
        curves.append(trained(folder, "native", attention, steps=60, precision=precision))
    assert curves[0] != curves[1]
    np.testing.assert_allclose(curves[0], curves[1], rtol=2e-2)


@pytest.mark.parametrize("num_threads", [2, 3])
def test_no_number_of_threads_changes_a_bit(tmp_path: Path, num_threads: int) -> None:
    fasta, found = synthetic(tmp_path / "in.fa"), []
    before = torch.get_num_threads()
    try:
        for number in (1, num_threads):
            torch.set_num_threads(number)
            one = trainer(tmp_path / str(number), fasta, small_options(steps=3, precision="bf16"), attention="relu")
            one.fit(lambda line: None)
            found.append(metrics(one.run))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_a_resumed_run_keeps_its_precision(tmp_path: Path) -> None:
    fasta, options = synthetic(tmp_path / "in.fa"), small_options(precision="bf16")
    one = trainer(tmp_path / "run", fasta, options)
    one.fit(lambda line: setattr(one, "stop_signal", 15 if line["step"] == 6 else None))
    step = checkpoint.verify(tmp_path / "run" / "step-6")
    assert step.manifest["options"]["precision"] == "bf16"
    with pytest.raises(ConfigError, match="precision"):
        trainer(tmp_path / "run", fasta, small_options()).restore(step)
    trainer(tmp_path / "run", fasta, options).restore(step)


def test_what_does_not_compute_bf16_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="native engine"):
        small_options(precision="bf16", engine="torch")
    with pytest.raises(ConfigError, match="on a CPU alone"):
        trainer(tmp_path / "run", synthetic(tmp_path / "in.fa"), small_options(precision="bf16"), device="meta")
    with pytest.raises(ConfigError, match="float64"):
        gradients(Network(small_config(), precision="bf16").double().train(), CAUSAL)


def test_a_processor_that_gains_nothing_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import protperf.lm.training.trainer as module

    fasta = synthetic(tmp_path / "in.fa")
    for unit, is_warned in (("as float32", True), ("amx", False)):
        monkeypatch.setattr(module, "build_info", lambda unit=unit: {**build_info(), "bf16": unit})
        trainer(tmp_path / "run", fasta, small_options(precision="bf16"))
        assert ("no faster" in capsys.readouterr().err) == is_warned
