"""The optimizer of a training: torch's AdamW and its clipping, without what torch imports for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import environment
from conftest import small_config

from protperf.lm.model.network import Network
from protperf.lm.training import muon
from protperf.lm.training.optimizer import Optimizer
from protperf.lm.training.options import TrainOptions

STEPS = 7
TRAINING = """
import sys
from protperf.lm.cli import main

code = main(["train", "--fasta", sys.argv[1], "-o", sys.argv[2], "--steps", "2", "--validate", "0.5", "-q"])
heavy = ("torch._dynamo", "torch._inductor", "sympy", "torch.distributed.tensor")
slow = [name for name in heavy if name in sys.modules]
sys.exit(f"code {code}, imported {slow}" if code or slow else 0)
"""


def peer(network: Network, options: TrainOptions) -> torch.optim.AdamW:
    """What this optimizer does, by torch's own class."""
    matrices = [p for p in network.parameters() if p.dim() >= 2]
    others = [p for p in network.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98), weight_decay=options.weight_decay)


@pytest.mark.parametrize("clip", [0.01, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_those_of_adamw_with_clipped_gradients(dtype: torch.dtype, clip: float) -> None:
    options = TrainOptions(steps=STEPS, clip=clip, weight_decay=0.3, optimizer="adamw")
    ours, theirs = (Network(small_config()).to(dtype) for _ in range(2))
    optimizer, other = Optimizer(ours.named_parameters(), options), peer(theirs, options)
    generator = torch.Generator().manual_seed(3)
    for step in range(STEPS):
        for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator, dtype=dtype)
            two.grad = one.grad.clone()
        # The mode has no part in some steps: a tensor without a gradient stays as it is.
        ours.mode.weight.grad = theirs.mode.weight.grad = None
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        assert optimizer.clip() == pytest.approx(float(norm), rel=1e-6)
        rate = 1e-2 / (step + 1)
        optimizer.step(rate)
        for group in other.param_groups:
            group["lr"] = rate
        other.step()
    assert optimizer.learning_rate == rate
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    for (name, one), two in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert one.grad is None
        torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance, msg=name)


def test_gradients_below_the_limit_keep_their_bits() -> None:
    network = Network(small_config())
    optimizer = Optimizer(network.named_parameters(), TrainOptions(steps=1, clip=1e3))
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizer.clip()
    assert all(bool((p.grad == 0.1).all()) for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 5, 9), (3, 9, 5)])
def test_muon_changes_singular_values_alone_and_makes_them_about_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, values, vh = np.linalg.svd(matrices.numpy(), full_matrices=False)
    x = values / np.sqrt((values**2).sum(-1, keepdims=True))
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    found = muon.orthogonalized(matrices).numpy()
    np.testing.assert_allclose(found, u * x[:, None] @ vh, rtol=0, atol=1e-12)
    assert x.min() > 0.6
    assert x.max() < 1.3
    assert not muon.orthogonalized(torch.zeros(shape)).any()


def test_muon_rounded_to_bf16_reaches_the_same_range() -> None:
    matrices = torch.randn((2, 40, 96), generator=torch.Generator().manual_seed(2))
    exact, rounded = muon.orthogonalized(matrices), muon.orthogonalized(matrices, torch.bfloat16)
    assert rounded.dtype == matrices.dtype
    # Some thirty roundings of 2^-9 each, which add up like noise.
    assert 0 < (rounded - exact).norm() < 0.03 * exact.norm()
    values = torch.linalg.svdvals(rounded)
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("numbers_at_once", [1, 150, 1 << 20])
def test_matrices_that_are_changed_together_change_as_each_by_itself(
    numbers_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "_NUMBERS_AT_ONCE", numbers_at_once)
    generator = torch.Generator().manual_seed(4)

    def matrices() -> list[muon.Matrix]:
        # Three shapes of parts, of which one is that of a whole matrix too.
        shapes = [(2, 12, 5), (1, 6, 5), (3, 18, 5), (2, 12, 5), (1, 5, 6), (1, 9, 4)]
        numbers = [torch.randn(3, *shape[1:], generator=generator, dtype=torch.float64) for shape in shapes]
        return [muon.Matrix(*three, parts=shape[0]) for three, shape in zip(numbers, shapes, strict=True)]

    together = matrices()
    generator.manual_seed(4)
    alone = matrices()
    muon.update(together, 0.02, 0.1)
    for one, other in zip(alone, together, strict=True):
        muon.update([one], 0.02, 0.1)
        torch.testing.assert_close(other.weight, one.weight, rtol=0, atol=1e-12)
        assert torch.equal(other.momentum, one.momentum)


def test_muon_changes_the_matrices_of_blocks_and_adamw_the_rest() -> None:
    options = TrainOptions(steps=1, optimizer="muon", weight_decay=0.3)
    network, plain = Network(small_config()), Network(small_config())
    optimizer, adamw = (
        Optimizer(network.named_parameters(), options),
        Optimizer(plain.named_parameters(), TrainOptions(steps=1, weight_decay=0.3, optimizer="adamw")),
    )
    generator = torch.Generator().manual_seed(3)
    for one, two in zip(network.parameters(), plain.parameters(), strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        two.grad = one.grad.clone()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    q_gradient = network.blocks[0].attention.qkv.weight.grad[:16].clone()  # type: ignore[union-attr,index]
    for each in (optimizer, adamw):
        each.step(1e-3)
    for (name, one), two in zip(network.named_parameters(), plain.parameters(), strict=True):
        is_matrix = name.startswith("blocks.") and one.dim() == 2
        assert torch.equal(one, two) != is_matrix, name
        assert [key.rpartition(".")[2] for key in optimizer.tensors() if key.startswith(f"{name}.")] == (
            ["momentum"] if is_matrix else ["step", "exp_avg", "exp_avg_sq"]
        )
    # The first of the three matrices of a weight, by itself: the direction of its gradient does not depend on scale.
    name = "blocks.0.attention.qkv.weight"
    expected = before[name][:16] * (1 - 0.02 * 0.3) - 0.02 * muon.orthogonalized(q_gradient[None])[0]
    torch.testing.assert_close(dict(network.named_parameters())[name][:16], expected, rtol=0, atol=1e-6)


def test_a_training_imports_no_compiler(fasta: Path, tmp_path: Path) -> None:
    """It would take as long to load as all the rest of torch."""
    words = [sys.executable, "-c", TRAINING, str(fasta), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
