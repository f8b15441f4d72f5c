"""Load a model: a network from a run directory, one of its steps or an ESM-2 folder, or a baseline.

torch is needed only where it computes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from protperf.errors import ConfigError
from protperf.lm.baselines.files import read as read_baseline
from protperf.lm.baselines.loading import baseline_engine
from protperf.lm.baselines.manifest import is_baseline
from protperf.lm.device import choose_engine, chosen_device
from protperf.lm.engine import Engine
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.esm_folder import is_esm_folder, read_folder
from protperf.lm.model.native_engine import NativeEngine
from protperf.lm.storage import checkpoint, manifest
from protperf.lm.storage.plain_file import broken, read_sealed
from protperf.lm.training import progress, state
from protperf.message import Argument, Message


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network from a verified step, or a baseline, ready to read sequences."""

    engine: Engine
    step: checkpoint.Step


def load_run(
    path: str | os.PathLike[str], dtype: str = "float32", device: str = "auto", engine: str = "auto"
) -> LoadedModel:
    """Load the best step of a run directory by validation, the step that is named, an ESM-2 folder of Hugging Face, or
    the directory of a baseline.

    The run may be in training: if its step is pruned while it is being read, the next best is read.

    Args:
        dtype: type to compute in.
        engine: `native`, `torch`, or `auto`: native on a CPU and on `wgpu`, torch on every other device and for ESM-2.

    Raises:
        MissingFileError: no such directory; CheckpointError: a file is damaged or holds numbers that are not finite;
        MissingPackageError: torch is needed and not installed.
    """
    if is_baseline(path):
        return _load_baseline(Path(path), dtype, device, engine)
    if is_esm_folder(Path(path)):
        return _load_esm(Path(path), dtype, device, engine)
    chosen = choose_engine(engine, device, dtype)
    # The native engine hashes the weights that it maps.
    hashed = [name for name in checkpoint.FILES if chosen != "native" or name != checkpoint.MODEL]
    return checkpoint.read(path, lambda step: _load(step, dtype, device, chosen), hashed)


def _load(step: checkpoint.Step, dtype: str, device: str, engine: str) -> LoadedModel:
    config = manifest.read_config(step)
    for check in (manifest.read_facts, state.read_options, progress.read_progress):
        check(step)
    loaded = _engine(step, config, dtype, device, engine)
    # The weights may be those of a step that took its place meanwhile: then the step is looked at again.
    if read_sealed(step.path / checkpoint.MANIFEST) != step.manifest:
        raise broken(step.path / checkpoint.MANIFEST, "was replaced while the model was read")
    return LoadedModel(loaded, step)


def _load_baseline(path: Path, dtype: str, device: str, engine: str) -> LoadedModel:
    if engine == "torch" or device not in ("auto", "cpu"):
        text = "{path}: is a baseline, which is a table on the CPU; leave {engine} and {device} out"
        parts = {"engine": Argument("engine"), "device": Argument("device")}
        raise ConfigError(Message(text, path=path, **parts))
    found = read_baseline(path)
    return LoadedModel(baseline_engine(found, dtype), found.step())


def _load_esm(path: Path, dtype: str, device: str, engine: str) -> LoadedModel:
    if engine == "native":
        text = "{path}: ESM-2 is computed by torch; leave {engine} out"
        raise ConfigError(Message(text, path=path, engine=Argument("engine", "native")))
    if device == "wgpu":
        text = "{path}: ESM-2 is computed by torch, which does not know {device}; leave {device} out"
        raise ConfigError(Message(text, path=path, device=Argument("device", "wgpu")))
    choose_engine("torch", device)
    from protperf.lm.model.esm import esm_engine

    folder = read_folder(path)
    return LoadedModel(esm_engine(folder, dtype, device), folder.step())


def _engine(step: checkpoint.Step, config: ModelConfig, dtype: str, device: str, engine: str) -> Engine:
    if engine == "native":
        return NativeEngine(step.path, config, dtype, chosen_device(device))
    from protperf.lm.model.torch_loading import torch_engine

    return torch_engine(step, config, dtype, device)
