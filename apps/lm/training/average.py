"""An exponential moving average of the weights, which is validated and answers; training goes on with the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch

from protperf.lm.model.network import Network
from protperf.lm.storage.expected import TRAINED

_FIRST_STEPS = 10
"""Steps in which the average is mostly that of the last few: the weights that a run begins with are forgotten soon."""


class Average:
    """The average of a network's parameters over the steps made.

    Attributes:
        weights: by name, as the parameters.
    """

    def __init__(self, network: Network, decay: float) -> None:
        """Start from the present parameters. `decay` is the share of the average that is kept at a step, at most."""
        self._network, self._decay = network, decay
        self.weights: dict[str, torch.Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Start from the present parameters."""
        self.weights = {name: p.detach().clone() for name, p in self._network.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after step number `step`, counted from 1."""
        decay = min(self._decay, step / (step + _FIRST_STEPS))
        for name, parameter in self._network.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)

    @contextlib.contextmanager
    def in_network(self) -> Iterator[None]:
        """The network has the average as its parameters."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._network.named_parameters():
            parameter.data, self.weights[name] = self.weights[name], parameter.data

    def trained(self) -> dict[str, torch.Tensor]:
        """The parameters themselves, by the names that a checkpoint gives them next to the average."""
        return {f"{name}.{TRAINED}": parameter.detach() for name, parameter in self._network.named_parameters()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the present parameters, those of a checkpoint's model, as the average; `tensors` has the trained."""
        self.restart()
        for name, parameter in self._network.named_parameters():
            parameter.data.copy_(tensors[f"{name}.{TRAINED}"])
