"""Batches for training as tensors: which sequences, cropped and masked how, follows from the seed and the place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from protperf.lm.data import batches
from protperf.lm.data.reading import Reading
from protperf.lm.data.store import TokenStore
from protperf.lm.data.stream import Stream, generator
from protperf.lm.model.network import CAUSAL, MASKED
from protperf.lm.training.options import TrainOptions
from protperf.lm.training.progress import Progress
from protperf.lm.watch import Watch


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass. Shapes: tokens [N], cu_seqlens [num_sequences + 1], positions and targets [num_targets]."""

    tokens: torch.Tensor
    cu_seqlens: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(
        cls,
        tokens: NDArray[np.uint8],
        cu_seqlens: NDArray[np.int64],
        positions: NDArray[np.int64],
        targets: NDArray[np.int64],
        device: torch.device,
    ) -> MicroBatch:
        """The arrays as tensors on a device."""
        arrays = (tokens, cu_seqlens, positions, targets)
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays))


class Feed:
    """The training part, in batches. The place is kept by `Progress`, so that a checkpoint holds all of it."""

    def __init__(
        self, store: TokenStore, options: TrainOptions, objective: str, device: torch.device,
        directions: str = "forward", watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self._store, self._options, self._objective, self._device = store, options, objective, device
        # Who predicts masked residues sees both sides of them: such a reading has no direction.
        self._readings = {MASKED: Reading("forward", options.starts), CAUSAL: Reading(directions, options.starts)}
        self._weights = _weights(store, watch or Watch()) if options.weights == "relatives" else None
        self._plan: tuple[int, batches.EpochPlan] | None = None

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return len(self._batches_of(epoch))

    def steps_of_epochs(self) -> int | None:
        """Optimizer steps of the epochs asked for, about; None if the run does not end after epochs."""
        if self._options.epochs is None:
            return None
        return math.ceil(self._options.epochs * self.num_batches(0) / self._options.accumulate)

    def epochs_done(self, progress: Progress) -> float:
        """Passes over the sequences made so far."""
        return progress.epoch + progress.batch / self.num_batches(progress.epoch)

    def mode(self, step: int) -> int:
        """Whether a step predicts masked residues or the next one."""
        if self._objective != "both":
            return MASKED if self._objective == "masked" else CAUSAL
        return int(generator(self._options.seed, Stream.MODE, step).random() < 0.5)

    def dropout_seed(self, step: int, micro: int) -> int:
        """The seed of the dropout of a forward pass."""
        return int(generator(self._options.seed, Stream.DROPOUT, step, micro).integers(2**63))

    def next(self, progress: Progress, mode: int, micro: int) -> MicroBatch:
        """The batch at the place that `progress` names, which is moved on."""
        p, o = progress, self._options
        indices = self._batches_of(p.epoch)[p.batch]
        batch = batches.build(self._store, indices, o.crop, o.seed, p.epoch, self._readings[mode])
        tokens = batch.tokens
        if mode == CAUSAL:
            positions, targets = batches.causal_targets(batch)
        else:
            tokens, positions, targets = batches.mask(batch, generator(o.seed, Stream.MASK, p.step, micro))
        p.batch += 1
        if p.batch == self.num_batches(p.epoch):
            p.epoch, p.batch = p.epoch + 1, 0
        return MicroBatch.of(tokens, batch.cu_seqlens, positions, targets, self._device)

    def _batches_of(self, epoch: int) -> batches.EpochPlan:
        if self._plan is None or self._plan[0] != epoch:
            o = self._options
            lengths = self._store.lengths
            plan = batches.epoch_plan(lengths, o.batch_tokens, o.crop, o.seed, epoch, self._weights)
            self._plan = (epoch, plan)
        return self._plan[1]


def _weights(store: TokenStore, watch: Watch) -> NDArray[np.float64]:
    # Most trainings weigh all sequences alike.
    from protperf.lm.data.cluster import weights

    # One native call, which takes some 30 s for a family of 30,000 sequences.
    with watch.waiting(f"counting the relatives of {len(store):,} sequences", "sequences"):
        return weights(store)
