"""`protperf doctor`: does this installation compute what it should on this machine?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from protperf.lm.cli import EXIT_DATA

GROUPS = {"options": ("model", "as_json")}
EXAMPLES = """
protperf doctor
protperf doctor --model runs/mine
protperf doctor --json > machine.json
"""


def run(
    model: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Check this model too: its files, and that its scores agree with each other."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Compare the kernels with each other and with float64, a model's scores with each other; print the verdict."""
    if model is not None and not model.exists():
        from protperf.lm.storage import checkpoint

        checkpoint.find(model)
    import torch

    from protperf import build_info
    from protperf.lm.cli.progress import waiting

    with waiting("checking", " checks") as bar:
        checks = []
        for check in _checks(model):
            checks.append(check)
            bar.update()
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
    return 0 if healthy else EXIT_DATA


def _checks(model: Path | None) -> Iterator[dict[str, Any]]:
    from protperf.torch.diagnostics import isa_parity, thread_parity

    yield from isa_parity()
    yield thread_parity()
    if model is not None:
        from protperf.lm.loading import load_run
        from protperf.lm.scoring.selfcheck import model_checks

        loaded = load_run(model)
        yield {"name": str(loaded.step.path), "found": "every file is as its manifest says", "ok": True}
        yield from model_checks(loaded.network)
