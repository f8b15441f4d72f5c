"""What a baseline says of itself: `baseline.json`, sealed. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from protperf.lm.storage.plain_file import broken, read_sealed, short

MANIFEST, TENSORS = "baseline.json", "model.safetensors"


def is_baseline(path: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a baseline."""
    return (Path(path) / MANIFEST).is_file()


def read_facts(path: Path) -> dict[str, Any]:
    """Kind, data and files of a baseline, whose numbers are not read.

    Raises:
        CheckpointError: the manifest is missing, damaged or malformed.
    """
    from protperf.lm.baselines.options import KINDS

    facts = read_sealed(path / MANIFEST)
    kind, files = facts.get("kind"), facts.get("files")
    if kind not in KINDS:
        raise broken(path / MANIFEST, f"is of a baseline of the kind {short(kind)}")
    if not isinstance(files, dict) or set(files) != {TENSORS} or not isinstance(files[TENSORS], dict):
        raise broken(path / MANIFEST, f"does not list {TENSORS}")
    return {"kind": kind, **facts}
