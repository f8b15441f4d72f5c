"""The network by native blocks against the same network composed in torch, and both against float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import STEADY, small_config
from training import losses, small_options, synthetic

from protperf.lm.model.config import ModelConfig
from protperf.lm.model.network import CAUSAL, MASKED, Network
from protperf.lm.training.run import train_run

LENGTHS = (1, 17, 64, 130, 65, 0, 90)
ROUNDING = 1e-6
"""Relative error that no order of summation in float32 goes below reliably."""
CANCELLED = 1e-9
"""The same relative to the gradient as a whole, for parameters whose own gradient nearly cancels: a temperature hardly
changes what ReLU features give."""


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens, cu_seqlens, positions, targets."""
    rng = np.random.default_rng(seed)
    borders = torch.from_numpy(np.cumsum([0, *LENGTHS]))
    tokens = torch.from_numpy(rng.integers(3, 23, int(borders[-1])).astype(np.uint8))
    positions = torch.arange(0, len(tokens), 2)
    return tokens, borders, positions, torch.from_numpy(rng.integers(3, 23, len(positions)))


def pair(config: ModelConfig) -> tuple[Network, Network, Network]:
    """By native blocks, composed in torch, and composed in float64; the same weights."""
    native = Network(config)
    with torch.no_grad():
        native.embedding.weight.mul_(10)
    composed = copy.deepcopy(native)
    composed.engine = "torch"
    return native, composed, copy.deepcopy(composed).double()


def gradients(network: Network, mode: int) -> tuple[float, dict[str, torch.Tensor]]:
    tokens, borders, positions, targets = batch()
    loss = network.loss(tokens, borders, mode, positions, targets, 1 / len(positions))
    loss.backward()
    return loss.item(), {name: parameter.grad.double() for name, parameter in network.named_parameters()}


def sized(size: str, attention: str) -> ModelConfig:
    return small_config(attention=attention) if size == "small" else ModelConfig.from_size(size, attention=attention)


@pytest.mark.parametrize("mode", [MASKED, CAUSAL], ids=["masked", "causal"])
@pytest.mark.parametrize(
    ("size", "attention"), [("nano", name) for name in STEADY] + [("small", "softmax"), ("small", "exact")]
)
def test_loss_and_gradients_are_as_close_to_float64_as_those_of_torch(size: str, attention: str, mode: int) -> None:
    native, composed, exact = (gradients(network, mode) for network in pair(sized(size, attention)))
    assert abs(native[0] - exact[0]) <= 2 * abs(composed[0] - exact[0]) + ROUNDING * abs(exact[0])
    whole = float(torch.stack([g.norm() for g in exact[1].values()]).norm())
    for name, needed in exact[1].items():
        ours, theirs = ((found[1][name] - needed).norm() for found in (native, composed))
        floor = 2 * ROUNDING * float(needed.norm()) + CANCELLED * whole
        # A rounding that moves a projection across 0 changes the slope of ReLU there, in either evaluation.
        floor *= 4 if attention == "relu" else 1
        assert float(ours) <= 2 * float(theirs) + floor, (name, float(ours), float(theirs), float(needed.norm()))


@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
def test_float64_agrees_to_its_own_rounding(attention: str) -> None:
    _, _, exact = pair(small_config(attention=attention))
    native = copy.deepcopy(exact)
    native.engine = "native"
    (loss, found), (needed_loss, needed) = gradients(native, CAUSAL), gradients(exact, CAUSAL)
    assert loss == pytest.approx(needed_loss, rel=1e-13)
    for name, gradient in needed.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14)


def test_a_loss_without_gradients_and_one_with_them_are_the_same() -> None:
    network, _, _ = pair(small_config())
    tokens, borders, positions, targets = batch()
    with torch.no_grad():
        without = network.loss(tokens, borders, CAUSAL, positions, targets)
    assert without == network.loss(tokens, borders, CAUSAL, positions, targets)


def test_the_angles_that_are_kept_are_those_of_the_positions() -> None:
    network, _, _ = pair(small_config())
    for length in (5, 3, 400, 17):
        positions = torch.arange(length).flip(0)
        for kept, needed in zip(network._kept_rotations(positions), network._rotations(positions), strict=True):
            assert torch.equal(kept, needed)


def trained(tmp_path: Path, engine: str, attention: str, **options: Any) -> list[float]:
    run = tmp_path / f"{engine}-{attention}"
    fasta = synthetic(tmp_path / "in.fa")
    config = small_config(attention=attention)
    train_run([fasta], run, config, small_options(engine=engine, checkpoint_every=1000, **options))
    return [float.fromhex(loss) for loss in losses(run)]


@pytest.mark.parametrize("steps", [80, pytest.param(200, marks=pytest.mark.soak)])
@pytest.mark.parametrize("attention", ["relu", "exact"])
def test_loss_curves_agree(tmp_path: Path, attention: str, steps: int) -> None:
    native, composed = (trained(tmp_path, engine, attention, steps=steps) for engine in ("native", "torch"))
    assert len(native) == len(composed) == steps
    assert native != composed, "one engine was used for both"
    # Rounding grows along a training; the curves lie on each other all the same.
    np.testing.assert_allclose(native, composed, rtol=2e-3)
    np.testing.assert_allclose(native[:20], composed[:20], rtol=1e-5)
