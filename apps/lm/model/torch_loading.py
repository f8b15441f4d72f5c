"""A verified step as a network of torch. The one part of loading that needs torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from protperf.lm.device import chosen_device
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.storage import checkpoint, tensor_file
from protperf.lm.storage.expected import ExpectedTensors
from protperf.lm.storage.plain_file import broken


def torch_engine(step: checkpoint.Step, config: ModelConfig, dtype: str, device: str) -> TorchEngine:
    """The network of a verified step on a device of torch, composed of torch's operations.

    Raises:
        CheckpointError: a tensor does not fit the configuration, or holds a number that is not finite.
    """
    network = Network(config, engine="torch")
    network.load_state_dict(verified_tensors(step, config))
    return TorchEngine(network.to(device=chosen_device(device), dtype=getattr(torch, dtype)).eval())


def verified_bytes(step: checkpoint.Step, config: ModelConfig, metadata: Mapping[str, str]) -> bytes:
    """The tensors of a verified step as a file of its own, with text as metadata; errors as `torch_engine`."""
    from safetensors.torch import save

    return save(verified_tensors(step, config), dict(metadata))


def verified_tensors(step: checkpoint.Step, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of the network by name; errors as `torch_engine`."""
    file = step.path / "model.safetensors"
    tensors = tensor_file.read_tensors(file, ExpectedTensors(config).network)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise broken(file, f"tensor {name} holds a number that is not finite: this training failed; train it again")
    return tensors
