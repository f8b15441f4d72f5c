"""Low-rank adapters: a fine-tuning that changes each matrix of a block by the product of two narrow ones.

A matrix W that a run starts with becomes W + B A, and only A and B learn. The network holds the sum, so that whoever
reads or stores it sees an ordinary network, and no engine has to know: the gradients of the factors follow from that of
the sum, dB = G Aᵀ and dA = Bᵀ G. B starts at 0, so the first step begins with the network as it was.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; here without its factor alpha / rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from protperf.errors import ConfigError
from protperf.lm.model.network import Network
from protperf.lm.storage.expected import LOW_RANK_A, LOW_RANK_B, UNCHANGED, low_rank_shapes
from protperf.lm.training.optimizer import Optimizer
from protperf.lm.training.options import TrainOptions
from protperf.message import Argument, Message


class LowRankOptimizer(Optimizer):
    """The optimizer of adapters of a network, whose other weights stay as they are."""

    def __init__(self, network: Network, options: TrainOptions) -> None:
        """Adapters of rank `options.lora` for the present weights.

        Raises:
            ConfigError: a matrix has no higher rank than that.
        """
        self._network = network
        self._unchanged: dict[str, torch.Tensor] = {}
        self._factors: dict[str, torch.nn.Parameter] = {}
        generator = torch.Generator().manual_seed(options.seed)
        for name, weight in network.named_parameters():
            shapes = low_rank_shapes(name, tuple(weight.shape), options.lora)
            if shapes is None:
                continue
            if options.lora >= min(weight.shape):
                text = "{lora} is no lower than the rank of {name}, which is {rows} x {columns}; choose a lower one"
                facts = {"name": name, "rows": weight.shape[0], "columns": weight.shape[1]}
                raise ConfigError(Message(text, lora=Argument("lora", options.lora), **facts))
            a = torch.randn(shapes[LOW_RANK_A], generator=generator) * weight.shape[1] ** -0.5
            self._factors[f"{name}.{LOW_RANK_A}"] = torch.nn.Parameter(a.to(weight))
            self._factors[f"{name}.{LOW_RANK_B}"] = torch.nn.Parameter(weight.new_zeros(shapes[LOW_RANK_B]))
            self._unchanged[name] = weight.detach().clone()
        super().__init__(self._factors.items(), options)

    def restart(self) -> None:
        """Take the present weights as those that the adapters change."""
        for name, weight in self._unchanged.items():
            weight.copy_(self._network.get_parameter(name).detach())

    @torch.no_grad()
    def clip(self) -> float:
        """Turn the gradients of the weights into those of the adapters, and scale these; returns their norm."""
        for name, a, b in self._adapters():
            if (gradient := self._network.get_parameter(name).grad) is not None:
                a.grad, b.grad = b.mT @ gradient, gradient @ a.mT
        for parameter in self._network.parameters():
            parameter.grad = None
        return super().clip()

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Change the adapters by their gradients, and the weights with them."""
        super().step(learning_rate)
        for name, a, b in self._adapters():
            self._network.get_parameter(name).copy_(torch.addmm(self._unchanged[name], b, a))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state, the adapters and the weights that they change, by the names that a checkpoint gives them."""
        factors = {name: factor.detach() for name, factor in self._factors.items()}
        unchanged = {f"{name}.{UNCHANGED}": weight for name, weight in self._unchanged.items()}
        return {**super().tensors(), **factors, **unchanged}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().restore(tensors)
        for name, factor in self._factors.items():
            factor.copy_(tensors[name])
        for name, weight in self._unchanged.items():
            weight.copy_(tensors[f"{name}.{UNCHANGED}"])

    def _adapters(self) -> Iterator[tuple[str, torch.nn.Parameter, torch.nn.Parameter]]:
        """Name of a weight [rows, columns], A [rank, columns] and B [rows, rank]."""
        for name in self._unchanged:
            yield name, self._factors[f"{name}.{LOW_RANK_A}"], self._factors[f"{name}.{LOW_RANK_B}"]
