"""Vectors in memory, with the records that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import ConfigError, MissingPackageError
from protperf.lm.embedding.options import PER_RESIDUE
from protperf.lm.embedding.partial_file import Layout
from protperf.lm.embedding.vectors import Embedded


class Embeddings:
    """Vectors in the order of the records.

    Attributes:
        n, lengths: place and residues of each record [R]; ids: their ids, which may repeat.
        arrays: by name of the pool [R, C]; or `residues` [sum L, C] alone, if vectors per residue were asked for.
        offsets: [R + 1], where record r has `residues[offsets[r]:offsets[r + 1]]`; None for pooled vectors.
        rejected: what `residues="skip"` left out, as `protperf.io.Rejection`s.
        warnings: what deserves attention in the input.
    """

    def __init__(
        self, rows: Sequence[Embedded], layout: Layout, rejected: Iterable[io.Rejection], warnings: Iterable[str]
    ) -> None:
        self.n = np.array([row.n for row in rows], np.int64)
        self.ids = [row.id for row in rows]
        self.lengths = np.array([row.length for row in rows], np.int64)
        self.rejected, self.warnings = tuple(rejected), tuple(warnings)
        self.offsets: NDArray[np.int64] | None = None
        if layout.is_per_residue:
            self.offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        join = np.concatenate if layout.is_per_residue else np.stack
        nothing = np.empty((0, layout.dim), layout.numpy_dtype)
        self.arrays: dict[str, NDArray[np.floating]] = {
            name: join([row.arrays[place] for row in rows]) if rows else nothing
            for place, name in enumerate(layout.names)
        }

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.arrays.items())
        return f"Embeddings of {len(self)} sequences: {shapes}"

    @property
    def vectors(self) -> NDArray[np.floating]:
        """The array of vectors.

        Raises:
            ConfigError: there are several; take one of `arrays`.
        """
        if len(self.arrays) > 1:
            raise ConfigError(f"there are several arrays of vectors; take one of arrays: {', '.join(self.arrays)}")
        return next(iter(self.arrays.values()))

    def __getitem__(self, index: int) -> NDArray[np.floating]:
        """The vector of one record [C], or those of its residues [L, C]."""
        if self.offsets is None:
            return self.vectors[index]
        place = range(len(self))[index]
        return self.vectors[self.offsets[place] : self.offsets[place + 1]]

    def to_pandas(self) -> Any:
        """A pandas DataFrame with a column per number: `n`, `id`, `length`, then `mean_0`, `mean_1` and so on.

        Vectors per residue have a row per residue: `n`, `id`, `position` (from 1), then the numbers.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError as error:
            raise MissingPackageError("to_pandas needs pandas; install it with pip install pandas") from error
        if self.offsets is None:
            heads = {"n": self.n, "id": self.ids, "length": self.lengths}
        else:
            places = np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.lengths)
            ids = np.repeat(np.array(self.ids, object), self.lengths)
            heads = {"n": np.repeat(self.n, self.lengths), "id": ids, "position": places + 1}
        parts = [pandas.DataFrame(heads)]
        for name, array in self.arrays.items():
            prefix = "" if name == PER_RESIDUE else f"{name}_"
            parts.append(pandas.DataFrame(array, columns=[f"{prefix}{i}" for i in range(array.shape[1])]))
        return pandas.concat(parts, axis=1)
