"""A short training, and what a model has learned."""

import math
import time
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

IGNORED = -100
"""The target of a position that is not predicted."""


class Batch(NamedTuple):
    """Shapes: tokens, targets [B,L] int64; padding [B,L], True where there is no token, or None."""

    tokens: torch.Tensor
    targets: torch.Tensor
    padding: torch.Tensor | None = None


class Learned(NamedTuple):
    """Over the targets: the share that was predicted, and the mean nats of each."""

    accuracy: float
    nats: float

    @property
    def perplexity(self):
        return math.exp(min(self.nats, 700.0))


def loss(model, batch):
    """Mean nats of the targets."""
    return cross_entropy(
        model(batch.tokens, batch.padding).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED
    )


def train(model, batches, num_steps, *, learning_rate=3e-3, redraw_interval=0, after=None):
    """Train on `num_steps` of the batches and return the losses; stops at the first that is not finite.

    Adam with the betas, decay and clipping of the article; the rate rises for a tenth of the steps and falls to 0.

    Args:
        batches: an iterator.
        redraw_interval: steps after which directions are drawn anew; 0 is never.
        after: called with the number of steps done and the model, after each.
    """
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, (0.9, 0.98), 1e-9, weight_decay=0.1)
    rise = max(1, num_steps // 10)
    losses = []
    model.train()
    for step in range(num_steps):
        if redraw_interval and step and step % redraw_interval == 0:
            model.redraw(step // redraw_interval)
        rate = min((step + 1) / rise, (num_steps - step) / max(1, num_steps - rise))
        for group in optimizer.param_groups:
            group["lr"] = rate * learning_rate
        found = loss(model, next(batches))
        losses.append(found.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        if after is not None:
            after(step + 1, model)
            model.train()
    return losses


@torch.no_grad()
def evaluate(model, batches):
    """What the model has learned of some batches."""
    model.eval()
    right = total = 0
    nats = 0.0
    for batch in batches:
        logits = model(batch.tokens, batch.padding).flatten(0, 1)
        targets = batch.targets.flatten()
        counted = targets != IGNORED
        nats += cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").item()
        right += int((logits.argmax(-1) == targets)[counted].sum())
        total += int(counted.sum())
    return Learned(right / total, nats / total)


def processor_seconds(call):
    """The processor time of a call, all threads together."""
    start = time.process_time()
    call()
    return time.process_time() - start
