"""What a run learnt, in plain words, from the figures of its last validation: judged against counting residues."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from protperf.message import Argument, Message

CLEAR_GAIN = 0.02
"""Nats per residue by which a model that has learnt something is better than residue frequencies, at the least."""
_SMALL_GAIN = 0.1
"""Nats per residue up to which a model knows little but composition and the most common neighbours."""
_REMEDIES = {name: Argument(name) for name in ("steps", "epochs", "time", "size", "objective")}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was learnt, and what to do about it where that is nothing; either is None where there is none to say."""

    learnt: str | None
    warning: str | None


def perplexity(loss: float) -> float:
    """The exponential of nats per residue; infinite where that is too large for a number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def verdict(run: Path, steps: int, figures: dict[str, float], trigrams: float | None = None) -> Verdict:
    """Judge the figures that `Validation.measure` gave after some steps.

    Args:
        trigrams: the perplexity that counting three residues in a row gives on the same sequences.
    """
    made = f"{steps} step{'s' * (steps != 1)}"
    found, unigram = perplexity(figures["val_loss"]), figures["unigram_perplexity"]
    gain = math.log(unigram) - figures["val_loss"]
    # A perplexity that is not a number is not a gain either.
    if not gain > CLEAR_GAIN:
        text = "{run}: {made} taught the model little or nothing: its validation perplexity is {found:.3f}, "
        text += "that of residue frequencies alone {unigram:.3f}; "
        text += "train for longer ({time}, {epochs} or {steps}), choose a smaller {size}, or free the machine for it"
        return Verdict(None, Message(text, run=run, made=made, found=found, unigram=unigram, **_REMEDIES))
    counted = "" if trigrams is None else f", trigrams {trigrams:.2f}"
    text = f"it learnt {gain:.2f} nats per residue beyond residue frequencies "
    text += f"(perplexity {found:.2f}, they {unigram:.2f}{counted})"
    if gain < _SMALL_GAIN or (trigrams is not None and found > trigrams):
        text += ", which is little: train for longer before you trust its answers"
    return Verdict(text, _masked_half(run, made, figures))


def _masked_half(run: Path, made: str, figures: dict[str, float]) -> str | None:
    """The warning for a model of both objectives whose masked one is no better than frequencies."""
    if "val_perplexity" not in figures or "val_perplexity_masked" not in figures:
        return None
    found, unigram = figures["val_perplexity_masked"], figures["unigram_perplexity"]
    # The frequencies are judged at other residues of the same sequences, which makes a difference in the third digit.
    if found < unigram * math.exp(-CLEAR_GAIN):
        return None
    text = "{run}: {made} taught the model to predict the next residue, but not a masked one: that perplexity is "
    text += "{found:.3f}, about that of residue frequencies ({unigram:.3f}); train for longer, or with {objective}, "
    text += "and do not use its answers about masked residues"
    objective = Argument("objective", "causal")
    return Message(text, run=run, made=made, found=found, unigram=unigram, objective=objective)
