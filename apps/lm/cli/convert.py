"""`protperf convert`: a trained model as files for other libraries."""

from __future__ import annotations

from typing import Any

from protperf.lm.cli import common
from protperf.lm.export.options import ConvertOptions
from protperf.lm.options import instance, pick

GROUPS = {
    "input": pick(ConvertOptions, "model"),
    "output": pick(ConvertOptions, "to", "out"),
    "messages": pick(common.MessageOptions, "quiet"),
}
EXAMPLES = """
protperf convert runs/mine --to hf -o mine-hf
protperf convert runs/mine/step-400 --to safetensors -o mine.safetensors
"""


def run(given: dict[str, Any]) -> int:
    """Write the model in another form; returns the exit code."""
    options, quiet = instance(ConvertOptions, given), given.get("quiet", False)
    from protperf.lm.export.convert import convert

    step = convert(options)
    common.say_all(GROUPS, [] if quiet else [f"{step} was written to {options.out}"])
    return 0
