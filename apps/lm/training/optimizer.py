"""AdamW with clipped gradients. It refuses gradients and weights that are not finite.

The update is torch's; its state is kept here, because `torch.optim.AdamW` imports torch's compiler, which takes as long
as all the rest of torch. On the CPU the fused form updates a tensor in one pass over its memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch.optim.adamw import adamw

from protperf.lm.model.network import Network
from protperf.lm.storage.expected import OPTIMIZER_STATE
from protperf.lm.training.options import TrainOptions

_BETAS = (0.9, 0.98)
_EPSILON = 1e-8
"""Added to the root of the second moment."""
_NORM_EPSILON = 1e-6
"""Added to the norm of the gradient, as `torch.nn.utils.clip_grad_norm_` does."""


class Optimizer:
    """The optimizer of a network.

    Attributes:
        learning_rate: of the last step.
        weight_decay: of matrices; vectors have none.
        clip_norm: the largest norm of the gradient.
        state: of each parameter its number of steps and its moments, by the names of `OPTIMIZER_STATE`.
    """

    def __init__(self, network: Network, options: TrainOptions) -> None:
        self._network = network
        self.learning_rate, self.weight_decay, self.clip_norm = options.lr, options.weight_decay, options.clip
        self._parameters = list(network.parameters())
        self.state: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}
        for parameter in self._parameters:
            # The state that the first step starts from, so that a run stopped before it can be saved as well.
            zeros = (torch.tensor(0.0), torch.zeros_like(parameter), torch.zeros_like(parameter))
            self.state[parameter] = dict(zip(OPTIMIZER_STATE, (x.detach() for x in zeros), strict=True))

    @torch.no_grad()
    def clip(self) -> float:
        """Scale the gradients down to the largest norm allowed; returns the norm that they had."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if math.isfinite(norm) and norm + _NORM_EPSILON > self.clip_norm:
            torch._foreach_mul_(gradients, self.clip_norm / (norm + _NORM_EPSILON))
        return norm

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Change the weights by the gradients, which are then forgotten."""
        self.learning_rate = learning_rate
        matrices = [p for p in self._parameters if p.dim() >= 2 and p.grad is not None]
        others = [p for p in self._parameters if p.dim() < 2 and p.grad is not None]
        self._update(matrices, self.weight_decay)
        self._update(others, 0.0)
        for parameter in self._parameters:
            parameter.grad = None

    def _update(self, parameters: list[torch.nn.Parameter], weight_decay: float) -> None:
        steps, means, squares = ([self.state[p][key] for p in parameters] for key in OPTIMIZER_STATE)
        adamw(
            [*parameters],
            [p.grad for p in parameters if p.grad is not None],
            means,
            squares,
            [],
            steps,
            # Elsewhere the fused form wants the numbers of steps on the device; torch chooses the form there.
            fused=True if all(p.device.type == "cpu" for p in parameters) else None,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=self.learning_rate,
            weight_decay=weight_decay,
            eps=_EPSILON,
            maximize=False,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state by the names that a checkpoint gives it."""
        return {
            f"{name}.{key}": self.state[parameter][key]
            for name, parameter in self._network.named_parameters()
            for key in OPTIMIZER_STATE
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over a state that `tensors` gave."""
        for name, parameter in self._network.named_parameters():
            moments = {key: tensors[f"{name}.{key}"].to(parameter.device) for key in OPTIMIZER_STATE[1:]}
            # AdamW keeps the number of steps in the memory of the processor on every device.
            self.state[parameter] = {OPTIMIZER_STATE[0]: tensors[f"{name}.{OPTIMIZER_STATE[0]}"], **moments}


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds a number that is not finite."""
    named = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point()]
    # A norm takes a tenth of the time of looking at each number, and is finite only if all of them are.
    if math.isfinite(float(torch.nn.utils.get_total_norm([tensor for _, tensor in named]))):
        return None
    # Numbers that are finite and large may have a norm that is not.
    return next((name for name, tensor in named if not bool(tensor.isfinite().all())), None)
