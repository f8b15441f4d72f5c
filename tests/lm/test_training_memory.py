"""Memory that runs out in a training: the batch is computed in parts, and no record is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from training import small_options, synthetic, trainer

from protperf.errors import OutOfMemory
from protperf.lm.model.network import Network

ERRORS = (
    OutOfMemory("no room"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory"),
)


def exhausted(most: int, error: Exception) -> Any:
    """A network that has memory for some tokens, and finds out when half of the gradients are there."""
    compute = Network.loss

    def loss(self: Network, tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        found = compute(self, tokens, *rest)
        if len(tokens) > most:
            found.backward()
            raise error
        return found

    return mock.patch.object(Network, "loss", loss)


def step(tmp_path: Path, name: str, **options: Any) -> tuple[float, int, list[torch.Tensor]]:
    one = trainer(tmp_path / name, synthetic(tmp_path / "in.fa"), small_options(**options), dropout=0.0)
    one.warn = one.loop.warn = lambda text: messages.append(text)
    messages: list[str] = []
    loss, targets = one.loop.step()
    assert one.loop.step()[1] > 0
    assert len(messages) == (name != "whole")
    return loss, targets, [p.detach().clone() for p in one.loop.network.parameters()]


@pytest.mark.parametrize("error", ERRORS)
def test_a_step_without_memory_is_the_same_step_in_parts(error: Exception, tmp_path: Path) -> None:
    loss, targets, weights = step(tmp_path, "whole", optimizer="adamw")
    # Batches of at most 150 tokens, sequences of at most 62.
    with exhausted(110, error):
        other_loss, other_targets, others = step(tmp_path, "parts", optimizer="adamw")
    assert other_targets == targets
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for one, two in zip(weights, others, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_a_sequence_that_does_not_fit_alone_ends_the_training(tmp_path: Path) -> None:
    one = trainer(tmp_path / "run", synthetic(tmp_path / "in.fa"), small_options())
    with exhausted(1, ERRORS[0]), pytest.raises(OutOfMemory, match="no room"):
        one.loop.step()
    with exhausted(1, RuntimeError("another fault")), pytest.raises(RuntimeError, match="another fault"):
        one.loop.step()
