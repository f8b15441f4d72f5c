"""One page of HTML that needs nothing else: no script, no font, no address. It fits a phone and follows dark mode."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from protperf import __version__
from protperf.lm.storage import durable

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--ink:#1b1f24;--soft:#5b6570;--line:#d9dee3;--card:#f5f7f9;
--a:#0072b2;--b:#d55e00;--c:#009e73}
@media(prefers-color-scheme:dark){:root{--bg:#14171a;--ink:#e8eaed;--soft:#9aa4ae;--line:#343a40;--card:#1e2226;
--a:#5ab4f0;--b:#ff9a4d;--c:#3fd0a0}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:1rem;background:var(--bg);color:var(--ink);
font:16px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
p{margin:.5rem 0}.soft{color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.5rem;margin:1rem 0}
.tiles div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
.tiles b{display:block;font-size:1.3rem}.tiles span{color:var(--soft);font-size:.85rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}
figure{margin:.5rem 0}figcaption{color:var(--soft);font-size:.9rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line)}
th{font-weight:600;color:var(--soft)}td.n,th.n{text-align:right}
details{margin:.5rem 0}summary{cursor:pointer}
code{font:.9em ui-monospace,monospace}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font:12px system-ui,sans-serif}
footer{margin-top:2rem;border-top:1px solid var(--line);padding-top:.5rem;color:var(--soft);font-size:.85rem}
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Html(str):
    """Text that is markup already; all other text is escaped."""


def escaped(value: object) -> Html:
    """A value as markup."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def page(title: str, body: Iterable[Html], style: str = "") -> str:
    """The page; `style` is added to that of every page."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{escaped(title)}</title>'
    end = f"<footer>Made by protperf {escaped(__version__)}. This page needs no other file and no connection.</footer>"
    content = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE.strip()}{style}</style></head>\n'
        f"<body>\n<h1>{escaped(title)}</h1>\n{content}\n{end}\n</body></html>\n"
    )


def section(title: str, *parts: Html) -> Html:
    """A heading and what belongs to it."""
    return Html(f"<section><h2>{escaped(title)}</h2>\n" + "\n".join(parts) + "</section>")


def paragraph(text: object, kind: str = "") -> Html:
    """A paragraph; `kind` is a class of the style."""
    return Html(f"<p{_class(kind)}>{escaped(text)}</p>")


def tiles(figures: Mapping[str, object]) -> Html:
    """Figures that stand out, each with its name."""
    cells = "".join(
        f"<div><b>{escaped(value)}</b><span>{escaped(name)}</span></div>" for name, value in figures.items()
    )
    return Html(f'<div class="tiles">{cells}</div>')


def facts(values: Mapping[str, Any]) -> Html:
    """Names and values, a line each."""
    rows = "".join(f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>" for name, value in values.items())
    return Html(f"<table>{rows}</table>")


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> Html:
    """A table with a heading; numbers stand to the right."""
    listed = list(rows)
    kinds = ["n" if listed and isinstance(cell, (int, float)) else "" for cell in (listed[0] if listed else names)]
    head = "".join(f"<th{_class(kind)}>{escaped(name)}</th>" for name, kind in zip(names, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{_class(kind)}>{_cell(x)}</td>" for x, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in listed
    )
    return Html(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def folded(title: str, *parts: Html) -> Html:
    """What is shown only when it is asked for."""
    return Html(f"<details><summary>{escaped(title)}</summary>" + "\n".join(parts) + "</details>")


def figure(drawing: Html, caption: str = "") -> Html:
    """A drawing with what it shows, if that needs words."""
    said = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{drawing}{said}</figure>")


def pair(*parts: Html) -> Html:
    """Parts that stand next to each other where there is room."""
    return Html(f'<div class="pair">{"".join(parts)}</div>')


def save(text: str, path: Path) -> None:
    """Write a page, as a whole or not at all."""
    durable.replace_file(path, text.encode("utf-8", "backslashreplace"))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _cell(value: object) -> Html:
    return escaped(f"{value:.3f}" if isinstance(value, float) else value)
