"""The weight of a prior next to a model, from members of the family that were left out of the prior.

Both give every residue of a member a distribution over the twenty; the weight w is the one for which their normalized
product, model^(1 - w) prior^w, makes the members likeliest. The prior is given what the model is given: a causal model
knows one side of a residue, and a pairwise prior that knew both would always win.

The weight is a half at the least. A model that was trained on these members, as one of the family mostly was, seems
better there than it is, and w comes out too small: 0 for the columns of the beta-lactamases next to a model of them,
whose ranking of mutants is best at 0.4. benches/TRAINING.md has the figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alignment.alignment import GAP
from protperf.lm.alphabet import FIRST_RESIDUE
from protperf.lm.baselines.family import FamilyEngine, FamilyModel
from protperf.lm.direction import is_trained_in_both
from protperf.lm.engine import Engine
from protperf.lm.scoring.distribution import log_softmax, residue_log_probs

EQUAL = 0.5
"""The weight at the least, and where an alignment has too few sequences to leave some out."""
_WEIGHTS = np.linspace(0.0, 1.0, 21)


@dataclass(frozen=True, slots=True)
class Mixture:
    """How a model and a prior are mixed, and what each is worth on members of the family that the prior never saw.

    Attributes:
        likeliest: the weight of the prior, 0 to 1, by which the members are likeliest.
        perplexities: of the model, the prior and, by that weight, the mixture; NaN where there are no such members.
    """

    likeliest: float
    num_members: int
    perplexities: tuple[float, float, float]

    @property
    def weight(self) -> float:
        """The weight of the prior, 0.5 to 1."""
        return max(EQUAL, self.likeliest)

    def __str__(self) -> str:
        if not self.num_members:
            return f"weight {self.weight:g}: the alignment has too few sequences to leave some out"
        alone, prior, mixed = self.perplexities
        least = "" if self.weight == self.likeliest else f" ({self.weight:g} is the least)"
        return (
            f"weight {self.weight:g}; {self.likeliest:g} by {self.num_members} family members left out of it{least}: "
            f"perplexity {alone:.2f} of the model, {prior:.2f} of the prior, {mixed:.2f} of both"
        )


def mix(engine: Engine, prior: FamilyEngine) -> Mixture:
    """Find the weight of a prior next to a model."""
    members = prior.members
    if not len(members):
        return Mixture(EQUAL, 0, (math.nan, math.nan, math.nan))
    nats = np.zeros(len(_WEIGHTS))
    count = 0
    for row in members:
        known = row != GAP
        residues = row[known].astype(np.int64)
        model = residue_log_probs(engine, (row[known] + FIRST_RESIDUE).astype(np.uint8))
        family = _conditionals(engine, prior.without_members, row)[known]
        mixed = [log_softmax((1 - w) * model + w * family) for w in _WEIGHTS]
        nats -= [rows[np.arange(len(residues)), residues].sum() for rows in mixed]
        count += len(residues)
    best = int(nats.argmin())
    ends = (nats[0], nats[-1], nats[best])
    perplexities = tuple(math.exp(total / count) for total in ends)
    return Mixture(float(_WEIGHTS[best]), len(members), perplexities)  # type: ignore[arg-type]


def _conditionals(engine: Engine, family: FamilyModel, row: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What a family expects in each column [L, 20], given what `residue_log_probs` gives the model of a member."""
    if engine.config.objective == "masked":
        return family.conditionals(row)
    before = family.conditionals(row, "before")
    return 0.5 * (before + family.conditionals(row, "after")) if is_trained_in_both(engine.config) else before
