"""Strategy `odds`: the log-odds of substitutions under a baseline that knows them, such as a model of a family."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protperf.errors import DataError
from protperf.lm.baselines.family import SubstitutionEngine
from protperf.lm.variants.variant import Variant
from protperf.lm.variants.wild_type import WildType
from protperf.lm.watch import Progress, no_progress


class OddsScorer:
    """Log-odds of all substitutions of a variant at once, against the wild type."""

    name = "odds"
    has_lengths = False

    def __init__(self, engine: SubstitutionEngine, wild_type: WildType) -> None:
        self._kind, self._wild, self._odds = engine.kind, wild_type, engine.odds(wild_type.tokens)

    def check(self, variant: Variant) -> None:
        """Refuse a variant that changes the length.

        Raises:
            DataError: naming it.
        """
        if not variant.is_substitution:
            name = variant.name(self._wild)
            raise DataError(f"{name} changes the length of the protein, for which a {self._kind} model has no odds")

    def tokens_read(self, variant: Variant) -> int:
        """Nothing is read."""
        return 0

    def score(self, variants: Sequence[Variant], progress: Progress = no_progress) -> NDArray[np.float64]:
        """Scores in nats [num_variants, 2], in the order of the variants; the second column has no meaning here: NaN.

        Args:
            progress: called with the number of variants that are done.
        """
        found = np.full((len(variants), 2), math.nan)
        for i, variant in enumerate(variants):
            found[i, 0] = self._odds.of(variant.sites, variant.inserted)
        progress(len(variants))
        return found
