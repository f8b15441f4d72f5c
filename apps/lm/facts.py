"""What a model is, from its manifest and headers alone: nothing is computed, and torch is not needed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from protperf.lm.baselines.manifest import TENSORS, is_baseline
from protperf.lm.baselines.manifest import read_facts as read_baseline_facts
from protperf.lm.storage import checkpoint, manifest, tensor_file
from protperf.lm.storage.checkpoint import Step
from protperf.lm.training.progress import read_progress


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The facts of a run directory (its best step), one step of it, an ESM-2 folder or a baseline, by name.

    Raises:
        MissingFileError: there is no such directory; CheckpointError: a file is damaged, or not what it should be.
    """
    folder = Path(path)
    if is_baseline(folder):
        facts = read_baseline_facts(folder)
        files = facts.pop("files")
        return {"path": str(folder), **facts, "model_sha256": files[TENSORS].get("sha256")}
    # What ESM-2 folders need is loaded where there may be one: a command that only asks starts at once.
    if (folder / "config.json").is_file():
        from protperf.lm.model.esm_folder import is_esm_folder, read_folder

        if is_esm_folder(folder):
            return read_folder(folder).facts()
    return checkpoint.read(folder, _of_step)


def _of_step(step: Step) -> dict[str, Any]:
    config, facts, progress = manifest.read_config(step), manifest.read_facts(step), read_progress(step)
    header = tensor_file.read_layout(step.path / "model.safetensors")
    parameters = sum(math.prod(shape) for name, (_, shape) in header.items() if not name.endswith(".omega"))
    return {
        "path": step.name,
        "step": step.number,
        "parameters": parameters,
        **config.to_mapping(),
        "model_sha256": step.manifest["files"]["model.safetensors"]["sha256"],
        "data_sha256": facts["data_sha256"],
        "validation_sha256": facts["validation_sha256"],
        **(manifest.read_origin(step) or {}),
        "best_validation_loss": progress.to_mapping()["best_loss"],
        "trained_tokens": progress.tokens,
        **{name: facts[name] for name in ("version", "torch", "isa")},
    }
