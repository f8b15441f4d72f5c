"""Scores weighed by conservation: a change counts for more where the family keeps its residues.

A log-odds says how much rarer a residue is than another, and where anything goes a residue can be rare by chance. How
conserved a place is, is measured on all of the column; measured fitness follows the product of the two better than the
log-odds alone, of every kind of model that was tried. benches/TRAINING.md has the figures.

The score of a variant is multiplied by the weight of its place, the root of the relative entropy of its column in units
of the protein's average (`Member.weights`). Where several residues change, it is the mean of their weights, each
counting as much as the family's log-odds of its change alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protperf.lm.baselines.family import Member
from protperf.lm.variants.scorer import Scorer
from protperf.lm.variants.variant import Variant
from protperf.lm.watch import Progress, no_progress


class ConservedScorer:
    """The scores of another scorer, weighed by how conserved the changed places are; as `Scorer`."""

    has_lengths = False

    def __init__(self, scorer: Scorer, member: Member) -> None:
        """Weigh scores.

        Args:
            member: the wild type in the columns of its family.
        """
        self.name = scorer.name
        self._scorer, self._member = scorer, member

    def check(self, variant: Variant) -> None:
        """Refuse a variant that has no score.

        Raises:
            DataError: naming it.
        """
        self._scorer.check(variant)

    def tokens_read(self, variant: Variant) -> int:
        """About how many residues are read for a variant."""
        return self._scorer.tokens_read(variant)

    def score(self, variants: Sequence[Variant], progress: Progress = no_progress) -> NDArray[np.float64]:
        """Scores [num_variants, 2]; the second column has no meaning here: NaN."""
        weights = np.array([self._weight(variant) for variant in variants])
        return np.stack(
            [self._scorer.score(variants, progress)[:, 0] * weights, np.full(len(variants), np.nan)], axis=1
        )

    def _weight(self, variant: Variant) -> float:
        weights = self._member.weights[list(variant.sites)]
        if len(weights) < 2:
            return float(weights.sum())
        changes = zip(variant.sites, variant.inserted, strict=True)
        odds = np.abs([self._member.of([site], np.array([token], np.uint8)) for site, token in changes])
        return float(np.average(weights, weights=odds if odds.any() else None))
