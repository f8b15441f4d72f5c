"""A verified step as a network of torch. The one part of loading that needs torch."""

from __future__ import annotations

import torch

from protperf.lm.device import torch_device
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
    file = step.path / "model.safetensors"
    tensors = tensor_file.read_tensors(file, ExpectedTensors(config).network)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise broken(file, f"tensor {name} holds a number that is not finite: this training failed; train it again")
    network = Network(config, engine="torch")
    network.load_state_dict(tensors)
    return TorchEngine(network.to(device=torch_device(device), dtype=getattr(torch, dtype)).eval())
