"""A baseline on disk: a directory of `baseline.json`, sealed, and `model.safetensors`, which it has the digest of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf import __version__
from protperf.errors import FileError
from protperf.lm.baselines.manifest import MANIFEST, TENSORS, read_facts
from protperf.lm.storage import checkpoint, durable, tensor_file
from protperf.lm.storage.plain_file import broken, seal
from protperf.message import Argument, Message

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a verified directory holds.

    Attributes:
        kind: one of `KINDS`; facts: what the manifest says of the data and the fit.
        arrays: float32, or int64 for residues.
    """

    path: Path
    kind: str
    facts: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    def array(self, name: str, kind: type[np.generic], *shape: int | None) -> NDArray[Any]:
        """One array, checked.

        Args:
            shape: None for an axis of any length.

        Raises:
            CheckpointError: it is missing, or of another type or shape.
        """
        array = self.arrays.get(name)
        fits = array is not None and array.dtype == kind and array.ndim == len(shape)
        if array is None or not fits or any(m not in (None, n) for n, m in zip(array.shape, shape, strict=True)):
            raise broken(self.path / TENSORS, f"has no tensor {name} of the shape and type that {self.kind} needs")
        return array

    def step(self) -> checkpoint.Step:
        """The directory in the place of a step of training: the digest of its numbers stands for the model."""
        return checkpoint.Step(self.path, 0, {"files": self.facts["files"]})


def check_free(out: Path, force: bool) -> None:
    """Refuse a place that a baseline may not be written to.

    Raises:
        FileError: something is there and may not be replaced, or the directory around it is missing.
    """
    if not out.absolute().parent.is_dir():
        raise FileError(None, "there is no such directory; make it first", str(out.parent))
    if not os.path.lexists(out):
        return
    if not _is_ours(out):
        raise FileError(None, "exists and is not a baseline; choose another name", str(out))
    if not force:
        text = Message("holds a baseline already; replace it with {force}", force=Argument("force", True))
        raise FileError(None, text, str(out))


def write(out: Path, kind: str, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write a baseline, in the place of another if there is one.

    Raises:
        FileError: it cannot be written.
    """
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    manifest = {**facts, "kind": kind, "version": __version__, "files": {TENSORS: checkpoint.entry_of(data)}}
    if _is_ours(out):
        durable.remove(out)
    durable.write_folder(out, {TENSORS: data, MANIFEST: seal(manifest)})


def read(path: str | os.PathLike[str]) -> Baseline:
    """Read and verify a baseline.

    Raises:
        CheckpointError: a file is missing, damaged or malformed, and named.
    """
    place = Path(path)
    facts = read_facts(place)
    checkpoint.check_entry(TENSORS, facts["files"][TENSORS], place / MANIFEST)
    checkpoint.verify_file(place / TENSORS, facts["files"][TENSORS])
    arrays = tensor_file.read_arrays(place / TENSORS, None)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise broken(place / TENSORS, f"tensor {name} holds a number that is not finite")
    return Baseline(place, facts["kind"], facts, arrays)


def _is_ours(path: Path) -> bool:
    """Whether a directory holds the files of a baseline and nothing else."""
    return path.is_dir() and not path.is_symlink() and {MANIFEST} <= set(os.listdir(path)) <= {MANIFEST, TENSORS}
