"""`protperf info`: what a trained model is, from its manifest and headers alone. torch is not needed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.lm.cli import common
from protperf.lm.options import instance, option, pick
from protperf.lm.shared_options import model_option

if TYPE_CHECKING:
    from protperf.lm.storage.checkpoint import Step


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InfoOptions:
    """What `info` is asked."""

    model: Path = model_option()
    as_json: bool = option(False, "Print JSON.", flag="--json")


GROUPS = {"input": pick(InfoOptions, "model"), "output": pick(InfoOptions, "as_json")}
EXAMPLES = """
protperf info runs/mine
protperf info runs/mine/step-400 --json
"""


def run(given: dict[str, Any]) -> int:
    """Print the facts of a model; returns the exit code."""
    options = instance(InfoOptions, given)
    facts = _facts_of(options.model)
    if options.as_json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        # Counts by name: how many held-out sequences were looked up, and how many have relatives in the training.
        shown = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        print(f"{name:<20} {common.plain(str(shown))}")
    return 0


def _facts_of(path: Path) -> dict[str, Any]:
    from protperf.lm.baselines.manifest import TENSORS, is_baseline, read_facts
    from protperf.lm.model.esm_folder import is_esm_folder, read_folder
    from protperf.lm.storage import checkpoint

    if is_baseline(path):
        facts = read_facts(path)
        files = facts.pop("files")
        return {"path": str(path), **facts, "model_sha256": files[TENSORS].get("sha256")}
    return read_folder(path).facts() if is_esm_folder(path) else checkpoint.read(path, _facts)


def _facts(step: Step) -> dict[str, Any]:
    from protperf.lm.storage import manifest, tensor_file
    from protperf.lm.training.progress import read_progress

    config, facts, progress = manifest.read_config(step), manifest.read_facts(step), read_progress(step)
    header = tensor_file.read_layout(step.path / "model.safetensors")
    parameters = sum(math.prod(shape) for name, (_, shape) in header.items() if not name.endswith(".omega"))
    return {
        "path": str(step.path),
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
