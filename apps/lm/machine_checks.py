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


def installed_torch() -> str:
    """The version of torch, which is not loaded for it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch")
    except PackageNotFoundError:
        return "not installed"


def machine_facts(torch: str) -> dict[str, Any]:
    """This build, what it runs on, the version of torch, and the GPUs, a line each."""
    from protperf import build_info

    return {**build_info(), "torch": torch, "gpus": tuple(gpu_lines())}


def machine_lines(facts: dict[str, Any]) -> list[str]:
    """The same as text."""
    lines = []
    for name in ("version", "profile", "target", "isa", "isas", "bf16", "num_threads", "torch", "gpus"):
        separator = "\n" + " " * 13 if name == "gpus" else ", "
        value = facts[name]
        lines.append(f"{name:<12} {separator.join(value) if isinstance(value, tuple) else value}")
    return lines


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
