"""A scan as a picture: positions from left to right in rows that wrap, new residues from top to bottom.

Red is worse than the wild type, blue is better, white means no change; a dot marks the residue of the wild type. The
scale is the same to both sides and ends at the 98th percentile of the scores' sizes, so that a few extreme ones do not
take the colour from the rest; the bar has arrows for those beyond. Grey: no score. A deletion
is drawn by its score per residue times the length of the protein. matplotlib is imported when asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from protperf.errors import ConfigError
from protperf.lm import picture
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.scan.scan import Scan

ORDER = "GAVLIMCPFYWSTNQHKRDE"
"""Residues from top to bottom: small and hydrophobic, aromatic, polar, positive, negative."""
MAX_POSITIONS = 3000
"""Positions of one figure; more would make a picture that programs refuse to open."""
_PER_ROW = 100
_CELL_INCHES = 0.125
_PERCENTILE = 98
_FONT = 6.5


def check_size(count: int) -> None:
    """Refuse a figure of too many positions.

    Raises:
        ConfigError: naming what makes it smaller.
    """
    if count > MAX_POSITIONS:
        text = "a heat map shows at most {most} positions and this one has {count}; choose a part with {region}"
        raise ConfigError(Message(text, most=MAX_POSITIONS, count=count, region=Argument("region")))


def draw(scan: Scan, ax: Any) -> Any:
    """The figure of a scan; see `Scan.heatmap`."""
    picture.require("a heat map")
    check_size(len(scan.positions))
    top = limit(scan)
    if ax is not None:
        image = _panel(ax, scan, 0, len(scan.positions), top)
        _add_scale(ax.figure.colorbar(image, ax=ax, extend="both"), scan)
        return ax.figure
    from matplotlib.figure import Figure

    count = len(scan.positions)
    # Rows of about one length, a multiple of ten.
    num_rows = -(-count // _PER_ROW)
    columns = max(30, -(-count // (10 * num_rows)) * 10)
    starts = range(0, count, columns)
    rows = len(ORDER) + (scan.deletions is not None)
    panel = (rows + 6) * _CELL_INCHES
    size = (columns * _CELL_INCHES + 2.2, panel * len(starts) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    name = picture.literal(scan.wild_type.id)
    figure.suptitle(f"{name}: change of score, nats ({', '.join(scan.strategies)})", fontsize=10)
    axes = figure.subplots(len(starts), 1, squeeze=False)[:, 0]
    for axis, start in zip(axes, starts, strict=True):
        image = _panel(axis, scan, start, min(start + columns, count), top)
        # Every row has the same scale of inches.
        axis.set_xlim(-0.5, columns - 0.5)
    _add_scale(figure.colorbar(image, ax=list(axes), extend="both", fraction=0.02, pad=0.01, aspect=30), scan)
    return figure


def limit(scan: Scan) -> float:
    """The score at which the colours end on either side."""
    sizes = np.abs(scan.matrix[np.isfinite(scan.matrix) & (scan.matrix != 0)])
    return float(np.percentile(sizes, _PERCENTILE)) if len(sizes) else 1.0


def drawn_cells(scan: Scan, start: int, end: int) -> tuple[NDArray[np.float64], list[str]]:
    """Scores of the positions from `start` to before `end` [N, rows], and the names of the rows from top to bottom."""
    cells = scan.matrix[start:end][:, [scan.letters.index(letter) for letter in ORDER]]
    if scan.deletions_per_residue is None:
        return cells, list(ORDER)
    # A shorter sequence has a higher sum for that alone.
    comparable = scan.deletions_per_residue[start:end] * len(scan.wild_type)
    return np.column_stack([cells, comparable]), [*ORDER, "del"]


def _add_scale(colorbar: Any, scan: Scan) -> None:
    """Words and numbers of the colours, no larger than those of the axes."""
    colorbar.set_label(_label(scan), fontsize=_FONT)
    colorbar.ax.tick_params(labelsize=_FONT)


def _label(scan: Scan) -> str:
    return "score, nats (red: worse than the wild type, blue: better)"


def _panel(axis: Any, scan: Scan, start: int, end: int, top: float) -> Any:
    cells, names = drawn_cells(scan, start, end)
    colors = import_module("matplotlib").colormaps["RdBu"].with_extremes(bad="0.8")
    image = axis.imshow(cells.T, cmap=colors, vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    marks = [(i, ORDER.index(letter)) for i, letter in enumerate(scan.sequence[start:end]) if letter in ORDER]
    axis.scatter([x for x, _ in marks], [y for _, y in marks], s=4, c="black", linewidths=0)
    axis.set_yticks(range(len(names)), names, fontsize=_FONT, family="monospace")
    # The wild type below each column, its numbers above.
    axis.set_xticks(range(end - start), list(scan.sequence[start:end]), fontsize=_FONT, family="monospace")
    axis.tick_params(length=0, pad=1.5)
    axis.spines[:].set_visible(False)
    numbered = [i for i in range(end - start) if i == 0 or scan.positions[start + i] % 10 == 0]
    # A number needs the room of three columns.
    numbered = [i for i in numbered if i == 0 or i >= 3]
    above = axis.secondary_xaxis("top")
    above.set_xticks(numbered, [str(scan.positions[start + i]) for i in numbered], fontsize=_FONT)
    above.tick_params(length=2, pad=1)
    above.spines[:].set_visible(False)
    axis.set_xlabel("wild type, positions above", fontsize=_FONT)
    axis.set_ylabel("new residue", fontsize=_FONT)
    return image
