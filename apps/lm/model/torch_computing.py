"""What every engine of torch has: the type and the device of its weights, its threads, and arrays as tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from protperf.errors import ConfigError
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.torch_process import check_fork, one_torch_thread


class TorchComputing:
    """The part of `protperf.lm.engine.Engine` that does not depend on the network.

    Args:
        config: that of the network.
        weight: any of its weights.
    """

    name = "torch"

    def __init__(self, config: ModelConfig, weight: torch.Tensor) -> None:
        self.config = config
        self.dtype, self.device = str(weight.dtype).removeprefix("torch."), str(weight.device)

    def arithmetic(self, deterministic: bool) -> dict[str, object]:
        threads = 1 if deterministic else torch.get_num_threads()
        return {"engine": self.name, "torch": str(torch.__version__), "threads": threads}

    @contextmanager
    def computing(self, deterministic: bool) -> Iterator[None]:
        check_fork()
        if not deterministic:
            yield
            return
        with one_torch_thread():
            yield

    def check_layer(self, layer: int) -> None:
        """Refuse a layer that the network does not have."""
        if not -1 <= layer <= self.config.num_layers:
            raise ConfigError(f"layer is {layer}; it must be from -1 to {self.config.num_layers}")

    def tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        """An array on the device of the network."""
        # torch warns of memory that may not be written to.
        writable = array if array.flags.writeable else array.copy()
        return torch.from_numpy(writable).to(self.device)
