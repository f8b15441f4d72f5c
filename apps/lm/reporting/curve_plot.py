"""The curves of a training as a picture."""

from __future__ import annotations

from typing import Any

from protperf.lm import picture
from protperf.lm.reporting.history import PERPLEXITIES, History

_FONT = 8.0


def draw(history: History, title: str) -> Any:
    """Training loss with the loss of the validations, and their perplexity, by step.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    picture.require("a plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(picture.literal(title), fontsize=_FONT + 2)
    left, right = figure.subplots(1, 2)
    if loss := history.curve("loss").thinned():
        left.plot(loss.steps, loss.values, color="C0", alpha=0.3, linewidth=1)
        left.plot(loss.steps, loss.smoothed().values, color="C0", label="training")
    if validation := history.curve("val_loss"):
        left.plot(validation.steps, validation.values, "o-", color="C1", markersize=3, label="validation")
    left.set_ylabel("loss, nats per target", fontsize=_FONT)
    for color, (name, label) in zip(("C1", "C2"), PERPLEXITIES.items(), strict=True):
        if found := history.curve(name):
            right.plot(found.steps, found.values, "o-", color=color, markersize=3, label=f"validation, {label}")
    if unigram := history.curve("unigram_perplexity"):
        right.axhline(unigram.values[-1], color="0.5", linewidth=1, linestyle="--", label="residue frequencies")
    right.set_ylabel("perplexity", fontsize=_FONT)
    for axis in (left, right):
        axis.set_xlabel("optimizer step", fontsize=_FONT)
        axis.tick_params(labelsize=_FONT, length=2)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.5)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=_FONT, frameon=False)
    return figure
