"""`train --lora`: adapters of low rank are all that learns, and the run is an ordinary one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import error_line, in_process
from conftest import small_config
from training import final_digests, metrics, small_options, synthetic, trainer

from protperf.errors import ConfigError
from protperf.lm.loading import load_run
from protperf.lm.model.network import Network
from protperf.lm.storage import checkpoint, tensor_file
from protperf.lm.storage.expected import ExpectedTensors
from protperf.lm.training.low_rank import LowRankOptimizer
from protperf.lm.training.request import read_request
from protperf.lm.training.run import train_run

RANK = 3
GIVEN: dict[str, Any] = {
    "steps": 6, "batch_tokens": 150, "validate": 0.1, "checkpoint_every": 1, "log_every": 1, "lora": RANK,
}  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A run of two steps."""
    options = small_options(steps=2, validate=0.1)
    train_run(synthetic(tmp_path / "base.fa"), tmp_path / "base", small_config(objective="causal"), options)
    return tmp_path / "base"


def weights(step: Path) -> dict[str, torch.Tensor]:
    return tensor_file.read_tensors(step / "model.safetensors", ExpectedTensors(small_config()).network)


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_gradients_of_the_factors_are_those_that_autograd_finds_through_the_sum(engine: str, tmp_path: Path) -> None:
    options = small_options(lora=RANK, init="base", clip=1e6, engine=engine)
    one = trainer(tmp_path / "run", synthetic(tmp_path / "in.fa"), options, dropout=0.0)
    loop, optimizer = one.loop, one.loop.optimizer
    assert isinstance(optimizer, LowRankOptimizer)
    for _ in range(2):
        # B is 0 before the first step, and the gradient of A with it.
        loop.step()
    stored = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    batch = loop.feed.next(loop.progress, 1, 0)
    arguments = (batch.tokens, batch.cu_seqlens, 1, batch.positions, batch.targets)
    loop.network.loss(*arguments).backward()
    optimizer.clip()
    factors = {name: stored[name].requires_grad_() for name in stored if name.endswith(("lora_a", "lora_b"))}
    sums = {
        name.removesuffix(".unchanged"): base + stored[f"{name.removesuffix('unchanged')}lora_b"]
        @ stored[f"{name.removesuffix('unchanged')}lora_a"]
        for name, base in stored.items() if name.endswith(".unchanged")
    }  # fmt: skip
    assert len(sums) == 2 * 4
    plain = Network(one.config, "torch")
    parameters = {**{k: v.detach() for k, v in loop.network.named_parameters()}, **sums}
    logits = torch.func.functional_call(plain, parameters, (batch.tokens, batch.cu_seqlens, 1))[batch.positions]
    torch.nn.functional.cross_entropy(logits, batch.targets, reduction="sum").backward()
    for name, factor in factors.items():
        assert factor.grad is not None
        found = optimizer._factors[name].grad
        assert found is not None
        assert found.abs().max() > 0
        torch.testing.assert_close(found, factor.grad, rtol=1e-4, atol=1e-5 * float(factor.grad.abs().max()), msg=name)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_matrices_change_by_a_low_rank_and_nothing_else_does(optimizer: str, base: Path, tmp_path: Path) -> None:
    given = {**GIVEN, "init": str(base), "optimizer": optimizer}
    read_request(tmp_path / "tuned", given).train(synthetic(tmp_path / "in.fa"), tmp_path / "tuned")
    before, after = weights(base / "step-2"), weights(tmp_path / "tuned" / "step-6")
    for name, weight in before.items():
        if name.startswith("blocks.") and weight.dim() == 2:
            change = torch.linalg.svdvals((after[name] - weight).double())
            assert change[RANK - 1] > 1e-5, name
            assert change[RANK] < 1e-6, name
        else:
            assert torch.equal(after[name], weight), name
    # Whoever reads runs finds an ordinary one, and its report names the start.
    assert load_run(tmp_path / "tuned").engine.config == load_run(base).engine.config
    assert checkpoint.verify(tmp_path / "tuned" / "step-6").manifest["options"]["lora"] == RANK


class _Stopped(Exception):
    """As if the process had been killed."""


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_it_goes_on_bit_for_bit_without_the_checkpoint_it_began_with(ema: float, base: Path, tmp_path: Path) -> None:
    fasta = synthetic(tmp_path / "in.fa")
    given = {**GIVEN, "init": str(base), "ema": ema}
    read_request(tmp_path / "whole", given).train(fasta, tmp_path / "whole")

    def stop(line: dict[str, Any]) -> None:
        if "val_loss" in line and line["step"] == 4:
            raise _Stopped

    with pytest.raises(_Stopped):
        read_request(tmp_path / "cut", given).train(fasta, tmp_path / "cut", report=stop)
    base.rename(tmp_path / "gone")
    read_request(tmp_path / "cut", {"resume": True}).train(fasta, tmp_path / "cut")
    assert final_digests(tmp_path / "cut") == final_digests(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--lora", "4"], "--lora adapts a trained model; name it with --init"),
        (["--lora", "16", "--init", "BASE"], "--lora 16 is no lower than the rank of blocks.0.attention.qkv.weight"),
        (["--lora", "-1"], "--lora is -1"),
    ],
)
def test_what_cannot_be_adapted_is_refused(words: list[str], expected: str, base: Path, tmp_path: Path) -> None:
    words = [str(base) if word == "BASE" else word for word in words]
    start = ["train", "--fasta", tmp_path / "base.fa", "-o", tmp_path / "run", "--steps", 1]
    assert error_line(in_process(*start, *words)).startswith(expected)
    with pytest.raises(ConfigError):
        small_options(lora=2)


def test_a_resumed_run_keeps_its_rank(base: Path, tmp_path: Path) -> None:
    fasta = synthetic(tmp_path / "in.fa")
    read_request(tmp_path / "run", {**GIVEN, "init": str(base), "steps": 2}).train(fasta, tmp_path / "run")
    with pytest.raises(ConfigError, match="lora contradicts the run, whose lora is 3 and not 5"):
        read_request(tmp_path / "run", {"resume": True, "lora": 5})
