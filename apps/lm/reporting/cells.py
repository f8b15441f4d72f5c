"""A scan as cells of an SVG in a page: positions from left to right in rows that wrap, new residues from top to bottom.

The colours and the scale are those of the heat map (`protperf.lm.scan.heatmap`), in steps, so that all cells of one
colour are one path; they come from the style of the page. A column shows its numbers where a mouse rests on it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from protperf.lm.reporting.page import Html, escaped
from protperf.lm.scan.heatmap import ORDER, drawn_cells, limit

if TYPE_CHECKING:
    from protperf.lm.scan.scan import Scan

STEPS = 8
"""Colours on either side of white."""
PER_ROW = 60
"""Positions of one row."""
_CELL = 10
_LEFT, _RIGHT, _TOP, _BOTTOM = 24, 6, 14, 14
_LIGHT = ((247, 247, 247), (178, 24, 43), (33, 102, 172))
_DARK = ((45, 49, 54), (255, 110, 95), (95, 170, 255))


def style() -> str:
    """The colours: `w` and `x` with a step are worse and better than the wild type."""
    light, dark = (_rules(*colors) for colors in (_LIGHT, _DARK))
    return f"""
.cells{{min-width:38rem}}.cells text{{font:7px ui-monospace,monospace}}.cells .wild{{fill:var(--ink)}}
.none{{fill:var(--line)}}.over{{fill:transparent}}{light}
@media(prefers-color-scheme:dark){{{dark}}}
"""


def cells(scan: Scan) -> Html:
    """The rows, an SVG each."""
    top = limit(scan)
    values, names = drawn_cells(scan, 0, len(scan.positions))
    starts = range(0, len(scan.positions), PER_ROW)
    drawn = "".join(_row(scan, values[start : start + PER_ROW], names, start, top) for start in starts)
    return Html(f'<div class="wide"><div class="cells">{drawn}</div></div>')


def _row(scan: Scan, values: object, names: list[str], start: int, top: float) -> str:
    height = _TOP + _CELL * len(names) + _BOTTOM
    parts = [f'<svg viewBox="0 0 {_LEFT + _CELL * PER_ROW + _RIGHT} {height}">']
    for i, name in enumerate(names):
        parts.append(f'<text x="{_LEFT - 4}" y="{_TOP + _CELL * i + 7}" text-anchor="end">{name}</text>')
    paths: dict[str, list[str]] = {}
    columns = list(values)  # type: ignore[call-overload]
    for x, column in enumerate(columns):
        for y, value in enumerate(column):
            at = f"M{_LEFT + _CELL * x} {_TOP + _CELL * y}h{_CELL}v{_CELL}h-{_CELL}z"
            paths.setdefault(_class(float(value), top), []).append(at)
    parts += [f'<path class="{kind}" d="{"".join(path)}"/>' for kind, path in sorted(paths.items())]
    for x, column in enumerate(columns):
        letter, position = scan.sequence[start + x], int(scan.positions[start + x])
        middle = _LEFT + _CELL * x + _CELL // 2
        if letter in ORDER:
            parts.append(f'<circle class="wild" cx="{middle}" cy="{_TOP + _CELL * ORDER.index(letter) + 5}" r="1.6"/>')
        if position % 10 == 0 or x == 0:
            parts.append(f'<text x="{middle}" y="{_TOP - 5}" text-anchor="middle">{position}</text>')
        parts.append(f'<text x="{middle}" y="{height - 5}" text-anchor="middle">{escaped(letter)}</text>')
        said = " ".join(f"{name} {value:.2f}" for name, value in zip(names, column, strict=True) if name != letter)
        parts.append(
            f'<rect class="over" x="{_LEFT + _CELL * x}" y="{_TOP}" width="{_CELL}" height="{_CELL * len(names)}">'
            f"<title>{escaped(letter)}{position}: {said}</title></rect>"
        )
    return "".join([*parts, "</svg>"])


def _class(value: float, top: float) -> str:
    """The class of a cell: grey without a score, else a step of red or blue; no change is step 0."""
    if math.isnan(value):
        return "none"
    step = min(STEPS, round(abs(value) / top * STEPS))
    return f"{'w' if value < 0 else 'x'}{step}"


def _rules(none: tuple[int, ...], worst: tuple[int, ...], best: tuple[int, ...]) -> str:
    rules = []
    for letter, end in (("w", worst), ("x", best)):
        for step in range(STEPS + 1):
            mixed = [round(a + (b - a) * step / STEPS) for a, b in zip(none, end, strict=True)]
            rules.append(f".{letter}{step}{{fill:rgb({mixed[0]},{mixed[1]},{mixed[2]})}}")
    return "".join(rules)
