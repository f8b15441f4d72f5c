"""The tensors that a configuration implies, found before any of their memory is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from protperf.lm.model.config import ModelConfig
from protperf.lm.model.network import Network
from protperf.lm.storage.checkpoint import Step
from protperf.lm.storage.tensor_file import check_layout, type_name

OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")
"""What the optimizer stores for each parameter: its number of steps, and two moments of the parameter's shape."""


class ExpectedTensors:
    """Type and shape by name of the tensors in the network's file and in the trainer's file."""

    def __init__(self, config: ModelConfig) -> None:
        with torch.device("meta"), _WithoutInitialization():
            network = Network(config)
        self.network = {name: (type_name(t.dtype), tuple(t.shape)) for name, t in network.state_dict().items()}
        self.trainer: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, parameter in network.named_parameters():
            moment = (type_name(parameter.dtype), tuple(parameter.shape))
            for key, layout in zip(OPTIMIZER_STATE, (("F32", ()), moment, moment), strict=True):
                self.trainer[f"{name}.{key}"] = layout


def check_tensors(step: Step, config: ModelConfig) -> None:
    """Check that the tensors of a step are those of its configuration.

    Raises:
        CheckpointError: naming the file.
    """
    expected = ExpectedTensors(config)
    check_layout(step.path / "model.safetensors", expected.network)
    check_layout(step.path / "trainer.safetensors", expected.trainer)


class _WithoutInitialization(TorchFunctionMode):
    """Skips initial values: drawing random ones on the meta device would make torch import its compiler."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
