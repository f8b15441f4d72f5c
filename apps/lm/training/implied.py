"""The tensors that a configuration implies, worked out before memory is asked for any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from protperf.lm.model.config import ModelConfig
from protperf.lm.model.network import Network
from protperf.lm.training.checkpoint import Step
from protperf.lm.training.tensor_file import check_layout, type_name

OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")
"""What the optimizer keeps for each parameter: the number of its steps, and both moments in the parameter's shape."""


class Layouts:
    """Type and shape by name: of the network's file, and of the trainer's."""

    def __init__(self, config: ModelConfig) -> None:
        with torch.device("meta"), _Unfilled():
            network = Network(config)
        self.network = {name: (type_name(t.dtype), tuple(t.shape)) for name, t in network.state_dict().items()}
        self.trainer: dict[str, tuple[str, tuple[int, ...]]] = {}
        for name, parameter in network.named_parameters():
            moment = (type_name(parameter.dtype), tuple(parameter.shape))
            for key, layout in zip(OPTIMIZER_STATE, (("F32", ()), moment, moment), strict=True):
                self.trainer[f"{name}.{key}"] = layout


def check_layouts(step: Step, config: ModelConfig) -> None:
    """Refuse a step whose tensors are not those of its configuration.

    Raises:
        CheckpointError: naming the file.
    """
    layouts = Layouts(config)
    check_layout(step.path / "model.safetensors", layouts.network)
    check_layout(step.path / "trainer.safetensors", layouts.trainer)


class _Unfilled(TorchFunctionMode):
    """Leaves out initial values: torch would import its compiler to make random ones on the meta device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
