"""Does this installation compute what it should? The checks that `protperf doctor` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def find_torch() -> Any:
    """The package where it is installed: models are scored without it."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def gpu_lines() -> list[str]:
    """Each GPU in a line, the one that is used marked; why none is, if so."""
    from protperf import gpu

    lines = [
        f"{adapter.index} {adapter.name} ({adapter.kind}, {adapter.interface}{', used' if adapter.is_chosen else ''})"
        for adapter in gpu.adapters()
    ]
    fault = gpu.fault()
    return lines if fault is None else [*lines, fault]


def checks(model: Path | None, has_torch: bool) -> Iterator[dict[str, Any]]:
    """Name, found and ok of each check: of the kernels, where torch is there, and of a model."""
    if has_torch:
        from protperf.torch.diagnostics import isa_parity, thread_parity

        yield from isa_parity()
        yield thread_parity()
    if model is None:
        return
    from protperf.lm.baselines.manifest import is_baseline
    from protperf.lm.loading import load_run
    from protperf.lm.model.esm_folder import is_esm_folder
    from protperf.lm.scoring.selfcheck import engine_checks

    loaded, is_run = load_run(model), not (is_esm_folder(model) or is_baseline(model))
    found = "every tensor is there and finite" if is_esm_folder(model) else "every file is as its manifest says"
    yield {"name": loaded.step.name, "found": found, "ok": True}
    yield from engine_checks(loaded.engine, load_run(loaded.step.path, "float64").engine)
    if has_torch and is_run:
        from protperf.lm.model.torch_checks import step_checks

        yield from step_checks(loaded.step, loaded.engine)
