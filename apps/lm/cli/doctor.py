"""`protperf doctor`: does this installation compute what it should on this machine?"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from protperf.lm.cli.commands import EXIT_DATA
from protperf.lm.options import instance, option, pick


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DoctorOptions:
    """What `doctor` is asked."""

    model: Path | None = option(None, "Also check this model: its files, and that its scores agree.", unit="RUN")
    as_json: bool = option(False, "Print JSON.", flag="--json")


GROUPS = {"options": pick(DoctorOptions)}
EXAMPLES = """
protperf doctor
protperf doctor --model runs/mine
protperf doctor --json > machine.json
"""


def run(given: dict[str, Any]) -> int:
    """Compare the kernels with each other and with float64, a model's scores with each other; print the verdict."""
    options = instance(DoctorOptions, given)
    if options.model is not None and not options.model.exists():
        from protperf.lm.storage import checkpoint

        checkpoint.find(options.model)
    from protperf.lm.cli.progress import CommandWatch
    from protperf.lm.machine_checks import checks as find_checks
    from protperf.lm.machine_checks import find_torch, machine_facts, machine_lines

    with CommandWatch(GROUPS, quiet=False).waiting("checking", " checks") as stage:
        checks = []
        torch = find_torch()
        for check in find_checks(options.model, torch is not None):
            checks.append(check)
            stage.update(1)
    report = {**machine_facts("not installed" if torch is None else torch.__version__), "checks": checks}
    healthy = all(check["ok"] for check in checks)
    if options.as_json:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join(machine_lines(report)))
        for check in checks:
            print(f"{'ok' if check['ok'] else 'FAIL':<5}{check['name']}: {check['found']}")
        print("all well" if healthy else "something is wrong; please report the lines above")
    return 0 if healthy else EXIT_DATA
