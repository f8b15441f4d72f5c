"""`protperf info`: what a trained model is, from its manifest and headers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer


def run(
    model: Annotated[Path, typer.Argument(help="Run directory, or one step of it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Print the facts of the step that reading commands would take."""
    from protperf.lm.training import checkpoint

    step = checkpoint.find(model)
    config = checkpoint.read_config(step)
    header = checkpoint.read_header(step.path / "model.safetensors")
    parameters = sum(math.prod(shape) for name, (_, shape) in header.items() if not name.endswith(".omega"))
    facts = {
        "path": str(step.path),
        "step": step.number,
        "parameters": parameters,
        **config,
        "data_sha256": step.manifest.get("data_sha256"),
        "trained_tokens": step.manifest.get("progress", {}).get("tokens"),
        "version": step.manifest.get("version"),
        "torch": step.manifest.get("torch"),
        "isa": step.manifest.get("isa"),
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        print(f"{name:<15} {value}")
    return 0
