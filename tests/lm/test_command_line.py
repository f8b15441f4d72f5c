"""The command line is the one that was agreed on: no flag, value or default changes unnoticed."""

from __future__ import annotations

import difflib
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from commands import in_process

PIN = Path(__file__).parents[1] / "pin" / "command_line.py"
SPECIFIED = {
    "train": "--fasta --recipe --size --dry-run --objective --attention --num-features --redraw-interval --steps "
    "--epochs --time --batch-tokens --accumulate --lr --schedule --warmup --clip --weight-decay --ema --validate "
    "--patience --checkpoint-every --resume --init --lora --logger",
    "score": "--method --direction --per-residue --resume --deterministic",
    "variants": "--wt --col --seq-col --label-col --strategy --offset --prior",
    "scan": "--region --heatmap --dels",
    "embed": "--pool --per-residue --layer --dtype --resume --shard",
    "generate": "--num --prompt --prompts --temperature --top-p --top-k --min-len --max-len --max-repeat --exclude "
    "--infill --fix-positions",
    "eval": "--masks --by --baseline --fail-above",
    "align": "--query --rounds",
    "baseline": "--kind --theta",
    "data": "--dedup --by --clusters --identity --fail-above",
    "info": "--json",
    "convert": "--to",
    "bench": "--lengths --json --device",
    "doctor": "--json --model",
}
"""What pipelines are promised, by command."""


def pin() -> Any:
    specification = importlib.util.spec_from_file_location("command_line_pin", PIN)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_command_line_is_the_one_that_was_agreed_on() -> None:
    module = pin()
    pinned = module.PINNED.read_text(encoding="utf-8").splitlines()
    changes = list(difflib.unified_diff(pinned, module.lines(), "agreed on", "declared", lineterm="", n=0))
    text = "\n".join(changes)
    assert not changes, f"{text}\nif it is meant: python tests/pin/command_line.py --write"


@pytest.mark.parametrize("command", SPECIFIED)
def test_the_help_of_a_command_names_every_flag_that_is_promised(command: str) -> None:
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", in_process(command, "--help").stdout.decode()))
    assert set(SPECIFIED[command].split()) - shown == set()
