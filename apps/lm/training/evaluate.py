"""Validation: mean negative log-likelihoods over held-out sequences, beside those of residue frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from protperf.lm.alphabet import FIRST_RESIDUE, MASK, NUM_STANDARD
from protperf.lm.data import batches
from protperf.lm.data.store import TokenStore
from protperf.lm.model.network import CAUSAL, MASKED, Network

MOST_TOKENS = 60_000
"""Tokens of the held-out part that a validation reads."""


@dataclass
class _Sum:
    """Sums over the twenty residues, in nats."""

    loss: float = 0.0
    unigram: float = 0.0
    count: int = 0

    def add(self, log_probs: torch.Tensor, targets: NDArray[np.int64], unigram: NDArray[np.float64]) -> None:
        standard = (targets >= FIRST_RESIDUE) & (targets < FIRST_RESIDUE + NUM_STANDARD)
        picked = log_probs[torch.arange(len(targets)), torch.from_numpy(targets)][torch.from_numpy(standard)]
        self.loss -= float(picked.double().sum())
        self.unigram -= float(np.log(unigram[targets[standard] - FIRST_RESIDUE]).sum())
        self.count += int(standard.sum())

    def perplexity(self, total: float) -> float:
        return math.exp(total / self.count) if self.count else math.nan


@torch.no_grad()
def validate(network: Network, held: TokenStore, unigram: NDArray[np.float64], crop: int) -> dict[str, float]:
    """Figures of a validation line: over the 20 residues, EOS left out, frequencies from the training part.

    Returns `val_loss` (nats a residue), `val_perplexity` (causal), `val_perplexity_masked` (15 % of the residues, all
    of them hidden), `unigram_perplexity` (at the same positions as `val_loss`); those that the objective does not train
    are left out.
    """
    objective = network.config.objective
    causal, masked = _Sum(), _Sum()
    was_training = network.training
    network.eval()
    order = np.argsort(held.lengths, kind="stable")
    used = 0
    # Every length in turn: short and long sequences weigh as they do in the whole part.
    stride = max(1, int(held.lengths.sum()) // MOST_TOKENS)
    for start in order[:: max(1, stride)].tolist():
        if used > MOST_TOKENS:
            break
        batch = batches.build(held, np.array([start]), crop, 0, 0)
        used += len(batch.tokens)
        borders = torch.from_numpy(batch.cu_seqlens)
        if objective != "masked":
            positions, targets = batches.causal_targets(batch)
            logits = network(torch.from_numpy(batch.tokens), borders, CAUSAL)
            causal.add(functional.log_softmax(logits[torch.from_numpy(positions)], -1), targets, unigram)
        if objective != "causal":
            tokens, sites, targets = batches.mask(batch, batches.generator(0, 3, start))
            # All hidden: a site that kept its residue would be told its answer.
            tokens[sites] = MASK
            logits = network(torch.from_numpy(tokens), borders, MASKED)
            masked.add(functional.log_softmax(logits[torch.from_numpy(sites)], -1), targets, unigram)
    network.train(was_training)
    main = masked if objective == "masked" else causal
    figures = {"val_loss": main.loss / max(main.count, 1), "unigram_perplexity": main.perplexity(main.unigram)}
    if objective != "masked":
        figures["val_perplexity"] = causal.perplexity(causal.loss)
    if objective != "causal":
        figures["val_perplexity_masked"] = masked.perplexity(masked.loss)
    return figures
