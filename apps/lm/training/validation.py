"""Validation: mean negative log-likelihoods of held-out sequences, and what residue frequencies give there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from protperf.lm.alphabet import FIRST_RESIDUE, MASK, NUM_STANDARD
from protperf.lm.data import batches
from protperf.lm.data.store import TokenStore
from protperf.lm.data.stream import Stream, generator
from protperf.lm.model.network import CAUSAL, MASKED, Network
from protperf.lm.training.feed import MicroBatch
from protperf.lm.training.verdict import perplexity

MAX_TOKENS = 60_000
"""Tokens of the held-out part that a validation reads."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """A batch, its targets among the twenty residues, and their loss in nats by residue frequencies."""

    batch: MicroBatch
    mode: int
    unigram: float


class Validation:
    """The held-out part as packed batches, which are the same at every validation.

    Figures are over the 20 residues, the end of a sequence left out. The masked ones hide 15 % of the residues, all of
    them: a site that kept its residue would be given its answer.
    """

    def __init__(
        self, held: TokenStore, frequencies: NDArray[np.float64], objective: str, crop: int, budget: int,
        device: torch.device, directions: str = "forward",
    ) -> None:  # fmt: skip
        """Choose and pack the sequences.

        Args:
            frequencies: of the residues in the training part [20].
            crop: tokens of a sequence that are read at most; budget: tokens of one forward pass.
            directions: `both` averages the causal losses of both readings.
        """
        self._objective = objective
        sequences = [(i, batches.build(held, np.array([i]), crop, 0, 0)) for i in _chosen(held, crop)]
        self._passes: list[_Pass] = []
        for mode in (CAUSAL, MASKED):
            if objective in ("both", "causal" if mode == CAUSAL else "masked"):
                examples = [_causal(batch) if mode == CAUSAL else _masked(i, batch) for i, batch in sequences]
                if mode == CAUSAL and directions == "both":
                    examples += [_causal(batches.Batch(b.tokens[::-1], b.cu_seqlens)) for _, b in sequences]
                self._passes += [
                    _packed(group, mode, frequencies, device) for group in _grouped(iter(examples), budget)
                ]

    def num_scored(self) -> int:
        """Residues that `val_loss` is a mean of."""
        return self._count(self._main())

    @torch.no_grad()
    def measure(self, network: Network) -> dict[str, float]:
        """Figures of a validation line.

        `val_loss` (nats per residue), `val_perplexity` (causal), `val_perplexity_masked`, `unigram_perplexity` (by
        residue frequencies, at the positions of `val_loss`); those that the objective does not train are left out.
        """
        was_training = network.training
        network.eval()
        losses = {mode: sum(_loss(network, p) for p in self._passes if p.mode == mode) for mode in (CAUSAL, MASKED)}
        network.train(was_training)
        main = self._main()
        unigram = sum(p.unigram for p in self._passes if p.mode == main)
        mean = losses[main] / self._count(main) if self._count(main) else math.nan
        figures = {"val_loss": mean, "unigram_perplexity": self._perplexity(unigram, main)}
        for mode, name in ((CAUSAL, "val_perplexity"), (MASKED, "val_perplexity_masked")):
            if any(p.mode == mode for p in self._passes):
                figures[name] = self._perplexity(losses[mode], mode)
        return figures

    def _main(self) -> int:
        return MASKED if self._objective == "masked" else CAUSAL

    def _count(self, mode: int) -> int:
        return sum(len(p.batch.targets) for p in self._passes if p.mode == mode)

    def _perplexity(self, loss: float, mode: int) -> float:
        return perplexity(loss / self._count(mode)) if self._count(mode) else math.nan


def _chosen(held: TokenStore, crop: int) -> Iterator[int]:
    """Sequences of every length in turn: short and long ones weigh as they do in the whole part."""
    used = 0
    order = np.argsort(held.lengths, kind="stable")
    for i in order[:: max(1, int(held.lengths.sum()) // MAX_TOKENS)].tolist():
        if used > MAX_TOKENS:
            return
        used += min(int(held.lengths[i]) + 2, crop)
        yield i


Example = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]
"""Tokens of one sequence, positions of its targets, and the targets."""


def _causal(batch: batches.Batch) -> Example:
    positions, targets = batches.causal_targets(batch)
    return _standard(batch.tokens, positions, targets)


def _masked(index: int, batch: batches.Batch) -> Example:
    tokens, sites, targets = batches.mask(batch, generator(0, Stream.VALIDATION_MASK, index))
    tokens[sites] = MASK
    return _standard(tokens, sites, targets)


def _standard(tokens: NDArray[np.uint8], positions: NDArray[np.int64], targets: NDArray[np.int64]) -> Example:
    kept = (targets >= FIRST_RESIDUE) & (targets < FIRST_RESIDUE + NUM_STANDARD)
    return tokens, positions[kept], targets[kept]


def _grouped(examples: Iterator[Example], budget: int) -> Iterator[list[Example]]:
    """Sequences in groups of at most `budget` tokens; a longer one is a group of its own."""
    group: list[Example] = []
    total = 0
    for example in examples:
        if group and total + len(example[0]) > budget:
            yield group
            group, total = [], 0
        group.append(example)
        total += len(example[0])
    if group:
        yield group


def _packed(group: list[Example], mode: int, frequencies: NDArray[np.float64], device: torch.device) -> _Pass:
    borders = np.cumsum([0, *(len(tokens) for tokens, _, _ in group)]).astype(np.int64)
    positions = np.concatenate([where + start for (_, where, _), start in zip(group, borders[:-1], strict=True)])
    targets = np.concatenate([targets for _, _, targets in group])
    unigram = -float(np.log(frequencies[targets - FIRST_RESIDUE]).sum())
    tokens = np.concatenate([tokens for tokens, _, _ in group])
    return _Pass(MicroBatch.of(tokens, borders, positions, targets, device), mode, unigram)


def _loss(network: Network, one: _Pass) -> float:
    """Nats of the targets of one forward pass."""
    batch = one.batch
    logits = network(batch.tokens, batch.cu_seqlens, one.mode)[batch.positions]
    picked = functional.log_softmax(logits, -1).gather(1, batch.targets[:, None])
    return -float(picked.cpu().double().sum())
