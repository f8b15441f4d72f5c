"""Curves as text: a canvas of Braille characters, each of which has two dots across and four down."""

from __future__ import annotations

from collections.abc import Mapping

from protperf.lm.reporting.history import PERPLEXITIES, Curve, History

_ACROSS, _DOWN = 2, 4
_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""The bit of each dot of a Braille character, by column and row."""
_BLANK = 0x2800
_AXIS = 8
"""Characters of the numbers to the left."""


def curves(history: History, width: int = 72, height: int = 10) -> str:
    """The training loss and the perplexity of the validations by step; `width` counts characters, `height` lines."""
    parts = []
    if loss := history.curve("loss"):
        parts.append(_plot("loss, nats per target", {"": loss.thinned((width - _AXIS) * _ACROSS)}, width, height))
    found = {label: history.curve(name) for name, label in PERPLEXITIES.items()}
    found = {label: curve for label, curve in found.items() if curve}
    if found:
        title = f"perplexity of the validations, {' and '.join(found)}"
        parts.append(_plot(title, found, width, height))
    return "\n\n".join(parts)


def _plot(title: str, found: Mapping[str, Curve], width: int, height: int) -> str:
    """A title, the curves, and the numbers at the ends of both axes."""
    steps = [step for curve in found.values() for step in curve.steps]
    values = [value for curve in found.values() for value in curve.values]
    low, high, first, last = min(values), max(values), min(steps), max(steps)
    across, down = (width - _AXIS - 1) * _ACROSS, height * _DOWN
    dots = [[0] * (across // _ACROSS) for _ in range(height)]
    for curve in found.values():
        points = [
            (_place(step, first, last, across), down - 1 - _place(value, low, high, down))
            for step, value in zip(curve.steps, curve.values, strict=True)
        ]
        for (x0, y0), (x1, y1) in zip([points[0], *points], points, strict=False):
            for x, y in _between(x0, y0, x1, y1):
                dots[y // _DOWN][x // _ACROSS] |= _BITS[x % _ACROSS][y % _DOWN]
    numbers = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    rows = ["".join(chr(_BLANK + bits) for bits in row) for row in dots]
    lines = [f"{numbers.get(i, ''):>{_AXIS - 1}} │{row}" for i, row in enumerate(rows)]
    ends = f"{f'step {first:.0f}':<{across // _ACROSS - 8}}{last:>8.0f}"
    return "\n".join([title, *lines, f"{'':>{_AXIS - 1}} └{'─' * (across // _ACROSS)}", f"{'':>{_AXIS + 1}}{ends}"])


def _place(value: float, low: float, high: float, size: int) -> int:
    return round((value - low) / (high - low) * (size - 1)) if high > low else size // 2


def _between(x0: int, y0: int, x1: int, y1: int) -> list[tuple[int, int]]:
    """The dots of a straight line."""
    count = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [(round(x0 + (x1 - x0) * i / count), round(y0 + (y1 - y0) * i / count)) for i in range(count + 1)]
