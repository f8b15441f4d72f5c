"""The weight of a prior next to a model, from members of the family that were left out of the prior.

Both give every residue of a member a distribution over the twenty; the weight w is the one for which their normalized
product, model^(1 - w) prior^w, makes the members likeliest. Where the model was trained on these members, it seems
better there than it is, and w comes out too small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf.lm import inference
from protperf.lm.alignment.alignment import GAP
from protperf.lm.alphabet import FIRST_RESIDUE, MASK, NUM_STANDARD
from protperf.lm.baselines.family import FamilyEngine
from protperf.lm.data.batches import frame
from protperf.lm.direction import is_trained_in_both
from protperf.lm.engine import MASKED, Engine, Tokens
from protperf.lm.scoring.options import FAST_PASSES

EQUAL = 0.5
"""The weight where an alignment has too few sequences to leave some out."""
_WEIGHTS = np.linspace(0.0, 1.0, 21)
_STANDARD = slice(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD)


@dataclass(frozen=True, slots=True)
class Mixture:
    """How a model and a prior are mixed, and what each is worth on members of the family that the prior never saw.

    Attributes:
        weight: of the prior, 0 to 1.
        perplexities: of the model, the prior and the mixture; NaN where there are no such members.
    """

    weight: float
    num_members: int
    perplexities: tuple[float, float, float]

    def __str__(self) -> str:
        if not self.num_members:
            return f"weight {self.weight:g}: the alignment has too few sequences to leave some out"
        alone, prior, mixed = self.perplexities
        return (
            f"weight {self.weight:g} by {self.num_members} family members left out of it: perplexity {alone:.2f} of "
            f"the model, {prior:.2f} of the prior, {mixed:.2f} of both"
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
        model = predicted(engine, (row[known] + FIRST_RESIDUE).astype(np.uint8))
        family = prior.without_members.conditionals(row)[known]
        nats += [-_log_probs((1 - w) * model + w * family, residues).sum() for w in _WEIGHTS]
        count += len(residues)
    best = int(nats.argmin())
    ends = (nats[0], nats[-1], nats[best])
    perplexities = tuple(math.exp(total / count) for total in ends)
    return Mixture(float(_WEIGHTS[best]), len(members), perplexities)  # type: ignore[arg-type]


def _log_probs(values: NDArray[np.float64], residues: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log-probabilities of residues [n] by unnormalized ones [n, 20]."""
    highest = values.max(1)
    total = highest + np.log(np.exp(values - highest[:, None]).sum(1))
    return np.asarray(values[np.arange(len(residues)), residues] - total)


def predicted(engine: Engine, tokens: Tokens) -> NDArray[np.float64]:
    """Log-probabilities of the twenty residues at each place of a sequence [L, 20], up to a constant of the place.

    Left to right, and where the model was trained in both directions, the mean of the two readings; of a model with
    masks only, with every 16th residue masked together.
    """
    if engine.config.objective == "masked":
        return _masked(engine, tokens)
    framed = frame(tokens)
    rows = np.concatenate(list(inference.chunked_log_probs(engine, framed[:-2])))[:, _STANDARD].astype(np.float64)
    if not is_trained_in_both(engine.config):
        return rows
    back = np.concatenate(list(inference.chunked_log_probs(engine, np.ascontiguousarray(framed[::-1])[:-2])))
    return np.asarray(0.5 * (rows + back[::-1, _STANDARD]))


def _masked(engine: Engine, tokens: Tokens) -> NDArray[np.float64]:
    found = np.empty((len(tokens), NUM_STANDARD))
    places = np.arange(len(tokens))
    for first in range(min(FAST_PASSES, len(tokens))):
        sites = places[first::FAST_PASSES]
        copy = frame(tokens)
        copy[sites + 1] = MASK
        rows = engine.log_probs(copy, np.array([0, len(copy)]), MASKED, sites + 1)
        found[sites] = rows[:, _STANDARD]
    return found
