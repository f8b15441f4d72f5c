"""AdamW, or Muon for the matrices and AdamW for the rest, with clipped gradients.

It refuses gradients and weights that are not finite. The update of AdamW is torch's; its state is kept here, because
`torch.optim.AdamW` imports torch's compiler, which takes as long as all the rest of torch. On the CPU the fused form
updates a tensor in one pass over its memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch.optim.adamw import adamw

from protperf.lm.storage.expected import OPTIMIZER_STATE, muon_parts, optimizer_state
from protperf.lm.training import muon
from protperf.lm.training.options import TrainOptions

_BETAS = (0.9, 0.98)
_EPSILON = 1e-8
"""Added to the root of the second moment."""
_NORM_EPSILON = 1e-6
"""Added to the norm of the gradient, as `torch.nn.utils.clip_grad_norm_` does."""


class Optimizer:
    """The optimizer of named weights, such as all those of a network.

    Attributes:
        learning_rate: of the last step.
        weight_decay: of matrices; vectors have none.
        clip_norm: the largest norm of the gradient.
        state: of each parameter its number of steps and its moments, by the names of `optimizer_state`.
    """

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], options: TrainOptions) -> None:
        self.learning_rate, self.weight_decay, self.clip_norm = options.lr, options.weight_decay, options.clip
        self._muon_dtype = torch.bfloat16 if options.precision == "bf16" else None
        self._named = dict(named)
        self._parts = {name: muon_parts(name, options.optimizer) for name in self._named}
        self._keys = {name: optimizer_state(name, options.optimizer) for name in self._named}
        self._parameters = list(self._named.values())
        self.state: dict[torch.nn.Parameter, dict[str, torch.Tensor]] = {}
        for name, parameter in self._named.items():
            # The state that the first step starts from, so that a run stopped before it can be saved as well.
            zeros = ((key, torch.tensor(0.0) if key == "step" else _zeros(parameter)) for key in self._keys[name])
            self.state[parameter] = dict(zeros)

    def restart(self) -> None:
        """Go on from other weights: no number of the state is of the present ones."""

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
        matrices, rest = [], []
        for name, parameter in self._named.items():
            if parameter.grad is not None and self._parts[name]:
                momentum = self.state[parameter]["momentum"]
                matrices.append(muon.Matrix(parameter, parameter.grad, momentum, self._parts[name]))
            elif parameter.grad is not None:
                rest.append(parameter)
        muon.update(matrices, muon.RATE * learning_rate, self.weight_decay, self._muon_dtype)
        self._update([p for p in rest if p.dim() >= 2], self.weight_decay)
        self._update([p for p in rest if p.dim() < 2], 0.0)
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
            for name, parameter in self._named.items()
            for key in self._keys[name]
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over a state that `tensors` gave."""
        for name, parameter in self._named.items():
            for key in self._keys[name]:
                tensor = tensors[f"{name}.{key}"]
                # AdamW keeps the number of steps in the memory of the processor on every device.
                self.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)


def _zeros(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter).detach()


def not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds a number that is not finite."""
    named = [(name, tensor.detach()) for name, tensor in tensors if tensor.is_floating_point()]
    # A norm takes a tenth of the time of looking at each number, and is finite only if all of them are.
    if math.isfinite(float(torch.nn.utils.get_total_norm([tensor for _, tensor in named]))):
        return None
    # Numbers that are finite and large may have a norm that is not.
    return next((name for name, tensor in named if not bool(tensor.isfinite().all())), None)
