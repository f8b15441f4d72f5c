"""Lines over two axes as an SVG in a page, whose colours come from the style of that page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protperf.lm.reporting.history import Curve
from protperf.lm.reporting.page import Html, escaped

STYLE = """
.axis{stroke:var(--line);fill:none}.a{stroke:var(--a)}.b{stroke:var(--b)}.c{stroke:var(--c)}.d{stroke:var(--soft)}
.line{fill:none;stroke-width:1.8}.faint{opacity:.35;stroke-width:1}.dash{stroke-dasharray:5 4;stroke-width:1.2}
circle.a{fill:var(--a)}circle.b{fill:var(--b)}circle.c{fill:var(--c)}
.keys{display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.85rem;color:var(--soft)}
.key{display:inline-flex;align-items:center;gap:.35rem}.key svg{width:20px;height:10px}
"""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 460, 270, 52, 14, 26, 36


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its name, the letter of its colour in the style, and its kind (`line`, `faint`, `dots`, `dash`)."""

    name: str
    color: str
    curve: Curve
    kind: str = "line"


def chart(series: Sequence[Series], x_name: str, y_name: str) -> Html:
    """The chart of lines that have points; a name is shown where it is not empty."""
    drawn = [each for each in series if each.curve]
    x = _Axis.of([step for each in drawn for step in each.curve.steps], _LEFT, _WIDTH - _RIGHT)
    y = _Axis.of([value for each in drawn for value in each.curve.values], _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"><title>{escaped(y_name)} by {escaped(x_name)}</title>']
    for tick in y.ticks:
        at = y.place(tick)
        parts.append(f'<path class="axis" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x.ticks:
        at, below = x.place(tick), _HEIGHT - _BOTTOM + 16
        parts.append(f'<text x="{at:.1f}" y="{below}" text-anchor="middle">{tick:g}</text>')
    parts += [line for each in drawn for line in _line(each, x, y)]
    parts.append(f'<text x="0" y="12">{escaped(y_name)}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escaped(x_name)}</text>')
    return Html("".join([*parts, "</svg>", _legend(drawn)]))


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where numbers stand, and which are named."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float]

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        low, high = min(values, default=0.0), max(values, default=1.0)
        if high <= low:
            low, high = low - 0.5, high + 0.5
        # About five steps of 1, 2 or 5 times a power of ten.
        raw = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * one for one in (1, 2, 5, 10) if power * one >= raw * 0.999)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return cls(low, high, start, end, [i * step for i in range(first, last + 1)])

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _line(each: Series, x: _Axis, y: _Axis) -> list[str]:
    curve = each.curve
    points = [(x.place(step), y.place(value)) for step, value in zip(curve.steps, curve.values, strict=True)]
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    lines = [f'<path class="line {each.color}{f" {each.kind}" if each.kind != "line" else ""}" d="{path}"/>']
    if each.kind == "dots":
        lines += [
            f'<circle class="{each.color}" cx="{a:.1f}" cy="{b:.1f}" r="3">'
            f"<title>step {step:g}: {value:.4g}</title></circle>"
            for (a, b), step, value in zip(points, curve.steps, curve.values, strict=True)
        ]
    return lines


def _legend(drawn: Sequence[Series]) -> str:
    marks = {each.name: each for each in drawn if each.name}
    entries = [
        f'<span class="key"><svg viewBox="0 0 20 10"><path class="line {each.color}{" dash" * (each.kind == "dash")}" '
        f'd="M0 5H20"/></svg>{escaped(name)}</span>'
        for name, each in marks.items()
    ]
    return f'<div class="keys">{"".join(entries)}</div>'
