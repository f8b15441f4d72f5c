"""An evaluation as a picture: perplexity by length next to its baselines, and how far confidence can be trusted.

A line per set and mode. On the diagonal of the calibration a model is right as often as it says; below, it is too sure
of itself. The bars say which share of the residues was given that confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from protperf.lm import picture
from protperf.lm.evaluation.tally import NUM_BINS, EvalRow, length_groups

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's, which people with any colour vision can tell apart."""
_BASELINES = {
    "ppl_unigram": ("residue frequencies", ":"),
    "ppl_ngram": ("n-grams", "--"),
    "ppl_family": ("family", "-."),
}
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_FONT = 8.0
_LEAST = 20
"""Residues of a bin that is drawn: the accuracy of fewer says nothing."""


def draw(rows: Sequence[EvalRow]) -> Any:
    """The figure of rows by length and by calibration, of one set or several.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    picture.require("a plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(4, 1), width_ratios=(1.25, 1))
    by_length, calibration, shares = (figure.add_subplot(place) for place in (grid[:, 0], grid[0, 1], grid[1, 1]))
    series = list(dict.fromkeys((row.set, row.mode) for row in rows))
    _draw_lengths(by_length, rows, series)
    _draw_calibration(calibration, shares, rows, series)
    for axis in (by_length, calibration, shares):
        axis.tick_params(labelsize=_FONT, length=2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *by_length.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=_FONT, frameon=False
    )
    return figure


def _draw_lengths(axis: Any, rows: Sequence[EvalRow], series: Sequence[tuple[str, str]]) -> None:
    found = [row for row in rows if row.by == "length"]
    groups = [group for group in length_groups() if any(row.group == group for row in found)]
    for number, (name, mode) in enumerate(series):
        own = [row for row in found if (row.set, row.mode) == (name, mode)]
        title = picture.literal(f"{name}, {mode}")
        color = _COLORS[number % len(_COLORS)]
        places = [groups.index(row.group) for row in own]
        axis.plot(places, [row.ppl for row in own], "o-", color=color, markersize=4, label=title)
        for field, (label, style) in _BASELINES.items():
            values = [getattr(row, field) for row in own]
            if any(math.isfinite(value) for value in values):
                shown = label if len(series) == 1 else f"{label}, {title}"
                axis.plot(places, values, style, color=color, alpha=0.6, linewidth=1, label=shown)
    axis.axhline(20, color="0.6", linewidth=1, label="any of 20 residues")
    axis.set_xticks(range(len(groups)), groups)
    # Equal steps are equal gains in nats.
    axis.set_yscale("log")
    high = axis.get_ylim()[1]
    axis.set_yticks(_TICKS, [str(tick) for tick in _TICKS])
    axis.yaxis.minorticks_off()
    axis.set_ylim(1, max(24, high))
    axis.set_xlabel("residues of the sequence", fontsize=_FONT)
    axis.set_ylabel("perplexity", fontsize=_FONT)
    axis.set_title("Perplexity by length", fontsize=_FONT + 2, loc="left")


def _draw_calibration(axis: Any, shares: Any, rows: Sequence[EvalRow], series: Sequence[tuple[str, str]]) -> None:
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    width = 1 / NUM_BINS / max(1, len(series))
    for number, (name, mode) in enumerate(series):
        own = [row for row in rows if (row.set, row.mode, row.by) == (name, mode, "calibration")]
        color, total = _COLORS[number % len(_COLORS)], sum(row.residues for row in own)
        kept = [row for row in own if row.residues >= _LEAST]
        axis.plot([row.confidence for row in kept], [row.accuracy for row in kept], "o-", color=color, markersize=4)
        starts = [float(row.group.partition("-")[0]) + number * width for row in own]
        shares.bar(starts, [row.residues / total for row in own], width, align="edge", color=color)
    for each in (axis, shares):
        each.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xticklabels([])
    axis.set_ylabel("share that is right", fontsize=_FONT)
    axis.set_title("Calibration", fontsize=_FONT + 2, loc="left")
    shares.set_xlabel("probability of the most probable residue", fontsize=_FONT)
    shares.set_ylabel("residues", fontsize=_FONT)
