"""Load a trained network from a run directory or from one of its steps. torch is needed only where it is asked for."""

from __future__ import annotations

import os
from dataclasses import dataclass

from protperf.lm.device import choose_engine
from protperf.lm.engine import Engine
from protperf.lm.model.config import ModelConfig
from protperf.lm.model.native_engine import NativeEngine
from protperf.lm.storage import checkpoint, manifest
from protperf.lm.storage.plain_file import broken, read_sealed
from protperf.lm.training import state


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network from a verified step, ready to read sequences."""

    engine: Engine
    step: checkpoint.Step


def load_run(
    path: str | os.PathLike[str], dtype: str = "float32", device: str = "auto", engine: str = "auto"
) -> LoadedModel:
    """Load the best step of a run directory by validation, or the step that is named, to compute in `dtype`.

    The run may be in training: if its step is pruned while it is being read, the next best is read.

    Args:
        engine: `native`, `torch`, or `auto`: native on a CPU, torch on every other device.

    Raises:
        MissingFileError: no such directory; CheckpointError: a file is damaged or holds numbers that are not finite;
        MissingPackageError: torch is needed and not installed.
    """
    chosen = choose_engine(engine, device)
    return checkpoint.read(path, lambda step: _load(step, dtype, device, chosen))


def _load(step: checkpoint.Step, dtype: str, device: str, engine: str) -> LoadedModel:
    config = manifest.read_config(step)
    for check in (manifest.read_facts, state.read_options, state.read_progress):
        check(step)
    loaded = _engine(step, config, dtype, device, engine)
    # The weights may be those of a step that took its place meanwhile: then the step is looked at again.
    if read_sealed(step.path / checkpoint.MANIFEST) != step.manifest:
        raise broken(step.path / checkpoint.MANIFEST, "was replaced while the model was read")
    return LoadedModel(loaded, step)


def _engine(step: checkpoint.Step, config: ModelConfig, dtype: str, device: str, engine: str) -> Engine:
    if engine == "native":
        return NativeEngine(step.path, config, dtype)
    from protperf.lm.model.torch_loading import torch_engine

    return torch_engine(step, config, dtype, device)
