"""Clusters of relatives within one set: a group of an evaluation that is known only once the whole set is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf import io, relatives


@dataclass(frozen=True, slots=True)
class Clusters:
    """The cluster of each record [R], as the place of its first member, and the ids of the records [R]."""

    of: NDArray[np.int64]
    ids: list[str]

    @classmethod
    def find(cls, records: Sequence[io.Record], identity: float) -> Clusters:
        """Look for relatives among the records of a set; what counts as one is said in `protperf.relatives`."""
        offsets = np.cumsum([0, *(len(record.tokens) for record in records)])
        tokens = np.concatenate([np.empty(0, np.uint8), *(record.tokens for record in records)])
        return cls(relatives.cluster((tokens, offsets), identity), [record.id for record in records])
