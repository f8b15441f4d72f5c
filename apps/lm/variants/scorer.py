"""What scores variants: one strategy with one model and one wild type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protperf.lm.variants.variant import Variant
from protperf.lm.watch import Progress, no_progress


class Scorer(Protocol):
    """One strategy with one model and one wild type."""

    name: str
    has_lengths: bool
    """Whether there is a form of the score per residue."""

    def check(self, variant: Variant) -> None:
        """Refuse a variant that has no score."""
        ...

    def tokens_read(self, variant: Variant) -> int: ...

    def score(self, variants: Sequence[Variant], progress: Progress = no_progress) -> NDArray[np.float64]: ...
