"""Load a trained network from a run directory or from one of its steps."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from protperf.lm.device import torch_device
from protperf.lm.model.network import Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.storage import checkpoint, manifest, tensor_file
from protperf.lm.storage.expected import ExpectedTensors
from protperf.lm.storage.plain_file import broken
from protperf.lm.training import state


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network from a verified step, ready to read sequences."""

    engine: TorchEngine
    step: checkpoint.Step


def load_run(path: str | os.PathLike[str], dtype: str = "float32", device: str = "auto") -> LoadedModel:
    """Load the best step of a run directory by validation, or the step that is named, to compute in `dtype`.

    The run may be in training: if its step is pruned while it is being read, the next best is read.

    Raises:
        MissingFileError: no such directory; CheckpointError: a file is damaged or holds numbers that are not finite.
    """
    return checkpoint.read(path, lambda step: _load(step, dtype, device))


def _load(step: checkpoint.Step, dtype: str, device: str) -> LoadedModel:
    config = manifest.read_config(step)
    for check in (manifest.read_facts, state.read_options, state.read_progress):
        check(step)
    file = step.path / "model.safetensors"
    tensors = tensor_file.read_tensors(file, ExpectedTensors(config).network)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise broken(file, f"tensor {name} holds a number that is not finite: this training failed; train it again")
    network = Network(config)
    network.load_state_dict(tensors)
    network = network.to(device=torch_device(device), dtype=getattr(torch, dtype)).eval()
    return LoadedModel(TorchEngine(network), step)
