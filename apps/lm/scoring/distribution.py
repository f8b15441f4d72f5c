"""What a model expects at each place of a sequence: a distribution over the twenty residues, by any kind of model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protperf.lm import inference
from protperf.lm.alphabet import FIRST_RESIDUE, MASK, NUM_STANDARD
from protperf.lm.data.batches import frame
from protperf.lm.direction import is_trained_in_both
from protperf.lm.engine import MASKED, Engine, Tokens
from protperf.lm.scoring.options import FAST_PASSES

_STANDARD = slice(FIRST_RESIDUE, FIRST_RESIDUE + NUM_STANDARD)


def residue_log_probs(engine: Engine, tokens: Tokens) -> NDArray[np.float64]:
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


def log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities of each row [n, 20] of unnormalized ones."""
    shifted = values - values.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
