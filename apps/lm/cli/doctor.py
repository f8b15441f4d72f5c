"""`protperf doctor`: does this installation compute what it should on this machine?"""

from __future__ import annotations

import json
from typing import Annotated

import typer

from protperf.lm.cli import EXIT_RESOURCES

GROUPS = {"options": ("as_json",)}
EXAMPLES = """
protperf doctor
protperf doctor --json > machine.json
"""


def run(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    """Compare the kernels with each other and with float64, and print the verdict."""
    import torch

    from protperf import build_info
    from protperf.torch.diagnostics import isa_parity, thread_parity

    checks = [*isa_parity(), thread_parity()]
    report = {**build_info(), "torch": torch.__version__, "checks": checks}
    healthy = all(check["ok"] for check in checks)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        for name in ("version", "profile", "target", "isa", "isas", "num_threads", "torch"):
            value = report[name]
            print(f"{name:<12} {', '.join(value) if isinstance(value, tuple) else value}")
        for check in checks:
            print(f"{'ok' if check['ok'] else 'FAIL':<5}{check['name']}: {check['found']}")
        print("all well" if healthy else "something is wrong; please report the lines above")
    return 0 if healthy else EXIT_RESOURCES
