"""Scores of residues as a picture: a panel per sequence, with a running mean, low where the model is surprised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protperf.lm import picture
from protperf.lm.alphabet import NUM_STANDARD

_LEAST_WINDOW, _WINDOWS = 9, 60
"""Residues of the running mean at the least, and how many windows a long sequence has."""
_FONT = 8.0


@dataclass(frozen=True, slots=True)
class Profile:
    """A sequence by name, and what each of its residues adds to the score: nats, NaN where there is none [L]."""

    name: str
    values: Sequence[float]


def draw(profiles: Sequence[Profile], method: str) -> Any:
    """The figure of some sequences.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    picture.require("a plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.8 + 1.7 * max(1, len(profiles))), layout="constrained")
    axes = figure.subplots(max(1, len(profiles)), 1, squeeze=False)[:, 0]
    for axis, profile in zip(axes, profiles, strict=False):
        _panel(axis, profile)
    figure.supylabel(f"log-likelihood, nats per residue ({method})", fontsize=_FONT)
    axes[-1].set_xlabel("position", fontsize=_FONT)
    return figure


def running_mean(values: Sequence[float]) -> np.ndarray[Any, Any]:
    """The mean over a window around each position [L], of the values that are there; NaN where none is."""
    scores = np.asarray(values, np.float64)
    window = max(_LEAST_WINDOW, len(scores) // _WINDOWS)
    known = np.isfinite(scores)
    sums, counts = (np.concatenate([[0.0], np.cumsum(x)]) for x in (np.where(known, scores, 0.0), known))
    places = np.arange(len(scores))
    first, last = np.maximum(places - window // 2, 0), np.minimum(places + window // 2 + 1, len(scores))
    with np.errstate(invalid="ignore"):
        mean: np.ndarray[Any, Any] = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return mean


def _panel(axis: Any, profile: Profile) -> None:
    places = np.arange(1, len(profile.values) + 1)
    scores = np.asarray(profile.values, np.float64)
    axis.plot(places, scores, color="C0", alpha=0.3, linewidth=0.6)
    axis.plot(places, running_mean(profile.values), color="C0", linewidth=1.4)
    axis.axhline(-np.log(NUM_STANDARD), color="0.5", linewidth=0.8, linestyle="--")
    title = picture.literal(profile.name)
    if np.isfinite(scores).any():
        title += f": perplexity {np.exp(-np.nanmean(scores)):.2f}"
    axis.set_title(f"{title} (dashed: any of 20 residues)", fontsize=_FONT, loc="left")
    axis.set_xlim(0.5, max(1.5, len(places) + 0.5))
    axis.tick_params(labelsize=_FONT, length=2)
    axis.spines[["top", "right"]].set_visible(False)
