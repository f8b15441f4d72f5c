"""Protein language models: train on a FASTA file, load, score. Works offline and sends nothing anywhere.

Names are imported when they are first used, so that the command line answers `--help` without torch or NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protperf.lm.api import Model, align, baseline, load, score, train
    from protperf.lm.data.api import data_check, data_split, data_stats
    from protperf.lm.data.store import write_tokens
    from protperf.lm.facts import info
    from protperf.lm.fasta import read_fasta
    from protperf.lm.reporting.api import plot_curves, report
    from protperf.lm.tables.merge import merge
    from protperf.lm.timing.job import bench
    from protperf.lm.variants.metrics import compare

__all__ = [
    "Model", "align", "baseline", "bench", "compare", "data_check", "data_split", "data_stats", "info", "load", "merge",
    "plot_curves", "read_fasta", "report", "score", "train", "write_tokens",
]  # fmt: skip

_HOMES = {
    "Model": "api",
    "align": "api",
    "baseline": "api",
    "bench": "timing.job",
    "compare": "variants.metrics",
    "data_check": "data.api",
    "data_split": "data.api",
    "data_stats": "data.api",
    "info": "facts",
    "load": "api",
    "merge": "tables.merge",
    "plot_curves": "reporting.api",
    "report": "reporting.api",
    "score": "api",
    "train": "api",
    "read_fasta": "fasta",
    "write_tokens": "data.store",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
