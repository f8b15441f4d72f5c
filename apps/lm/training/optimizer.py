"""AdamW with clipped gradients. It refuses gradients and weights that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from protperf.lm.model.network import Network
from protperf.lm.storage.expected import OPTIMIZER_STATE
from protperf.lm.training.options import TrainOptions

_BETAS = (0.9, 0.98)


class Optimizer:
    """The optimizer of a network; weight decay applies to matrices only."""

    def __init__(self, network: Network, options: TrainOptions) -> None:
        self._network, self._clip = network, options.clip
        matrices = [p for p in network.parameters() if p.dim() >= 2]
        others = [p for p in network.parameters() if p.dim() < 2]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, lr=options.lr, betas=_BETAS, weight_decay=options.weight_decay)
        for parameter in network.parameters():
            # The state that the first step would start from, so that a run stopped before it can be saved as well.
            zeros = (torch.tensor(0.0), torch.zeros_like(parameter), torch.zeros_like(parameter))
            self.adamw.state[parameter] = dict(zip(OPTIMIZER_STATE, zeros, strict=True))

    def clip(self) -> float:
        """Scale the gradients down to the largest norm allowed; returns the norm that they had."""
        return float(torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._clip))

    def step(self, learning_rate: float) -> None:
        """Change the weights by the gradients, which are then forgotten."""
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state by the names that a checkpoint gives it."""
        return {
            f"{name}.{key}": self.adamw.state[parameter][key]
            for name, parameter in self._network.named_parameters()
            for key in OPTIMIZER_STATE
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over a state that `tensors` gave."""
        for name, parameter in self._network.named_parameters():
            moments = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in OPTIMIZER_STATE[1:]}
            # AdamW keeps the number of steps in the memory of the processor on every device.
            self.adamw.state[parameter] = {OPTIMIZER_STATE[0]: tensors[f"{name}.{OPTIMIZER_STATE[0]}"], **moments}


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds a number that is not finite."""
    named = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point()]
    # A norm takes a tenth of the time of looking at each number, and is finite only if all of them are.
    if math.isfinite(float(torch.nn.utils.get_total_norm([tensor for _, tensor in named]))):
        return None
    # Numbers that are finite and large may have a norm that is not.
    return next((name for name, tensor in named if not bool(tensor.isfinite().all())), None)
