"""`protperf info`: what a model is and how its training went, or what is installed here. torch is not needed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from protperf.lm.cli import common
from protperf.lm.named_files import MODEL
from protperf.lm.options import check, instance, option, pick
from protperf.lm.reporting.options import RunReportOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InfoOptions:
    """Which model `info` is asked about."""

    model: Path | None = option(None, f"{MODEL} Without it: what is installed here.", positional=True, unit="MODEL")

    def __post_init__(self) -> None:
        check(self)


GROUPS = {"input": pick(InfoOptions), "output": pick(RunReportOptions)}
EXAMPLES = """
protperf info
protperf info runs/mine
protperf info runs/mine/step-400 --json
protperf info runs/mine --curves
protperf info runs/mine --report mine.html --plot mine.png
"""


def run(given: dict[str, Any]) -> int:
    """Print the facts of a model, or of this machine, and write what was asked for; returns the exit code."""
    model, options = instance(InfoOptions, given).model, instance(RunReportOptions, given)
    if model is None:
        return _show_machine(options)
    from protperf.lm.facts import info

    facts = info(model)
    drawn = _drawn(model, options)
    if options.as_json:
        print(json.dumps(facts, indent=1))
        return 0
    for name, value in facts.items():
        # Counts by name: how many held-out sequences were looked up, and how many have relatives in the training.
        shown = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        print(f"{name:<20} {common.plain(str(shown))}")
    print(drawn, end="")
    return 0


def _show_machine(options: RunReportOptions) -> int:
    options.check_no_training()
    from protperf.lm.machine_checks import installed_torch, machine_facts, machine_lines

    facts = machine_facts(installed_torch())
    print(json.dumps(facts, indent=1) if options.as_json else "\n".join(machine_lines(facts)))
    return 0


def _drawn(model: Path, options: RunReportOptions) -> str:
    """Write the files that were asked for; returns the curves as text if they were asked for."""
    if options.plot is not None or options.report is not None:
        from protperf.lm.reporting.api import plot_curves, report

        if options.plot is not None:
            plot_curves(model, options.plot)
        if options.report is not None:
            report(model, options.report)
    if not options.curves:
        return ""
    from protperf.lm.reporting.history import read_history
    from protperf.lm.reporting.text_plot import curves

    return f"\n{curves(read_history(model))}\n"
