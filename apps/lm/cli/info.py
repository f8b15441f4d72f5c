"""`protperf info`: what a trained model is, from its manifest and headers alone. Imports neither torch nor typer."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

from protperf.errors import ConfigError

if TYPE_CHECKING:
    from protperf.lm.storage.checkpoint import Step

_HELP = """\
usage: protperf info [OPTIONS] MODEL

Show what a trained model is.

input:
  MODEL                   Run directory, or one step of it

output:
      --json              Print JSON

  -h, --help              Show this message

examples:
  protperf info runs/mine
  protperf info runs/mine/step-400 --json
"""


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        return _HELP

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see protperf info --help)")


def main(words: list[str]) -> int:
    """Print the facts of a model; returns the exit code."""
    parser = _Parser("protperf info", allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--json", action="store_true")
    try:
        given, unknown = parser.parse_known_args(words)
    except SystemExit as error:  # --help
        return int(error.code or 0)
    if unknown:
        first = unknown[0]
        wrong = f"unknown option {first}; did you mean --json?" if first.startswith("-") else f"{first} is one too many"
        parser.error(wrong)
    facts = _facts(given.model)
    if given.json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        print(f"{name:<20} {value}")
    return 0


def _facts(model: str) -> dict[str, Any]:
    from protperf.lm.storage import checkpoint

    return checkpoint.read(model, _facts_of_step)


def _facts_of_step(step: Step) -> dict[str, Any]:
    from protperf.lm.storage import manifest, tensor_file
    from protperf.lm.training.state import read_progress

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
        "best_validation_loss": progress.to_mapping()["best_loss"],
        "trained_tokens": progress.tokens,
        **{name: facts[name] for name in ("version", "torch", "isa")},
    }
