"""A scan as a page: the heat map, the changes that the model likes most and least, and the positions it would keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from protperf.lm.reporting import page
from protperf.lm.reporting.cells import cells, style
from protperf.lm.reporting.page import Html
from protperf.lm.scan.heatmap import check_size, limit

if TYPE_CHECKING:
    from protperf.lm.scan.scan import Scan

NUM_CHANGES = 25
"""Rows of each of the two tables of changes."""
NUM_POSITIONS = 15


def scan_page(scan: Scan, facts: Mapping[str, Any] | None = None) -> str:
    """The page.

    Args:
        facts: where the scores come from, by name, such as the model.

    Raises:
        ConfigError: too many positions for one picture.
    """
    check_size(len(scan.positions))
    first, last = (int(scan.positions[0]), int(scan.positions[-1])) if len(scan.positions) else (0, 0)
    changes = [row for row in scan.table if np.isfinite(row["score"])]
    better = sum(row["score"] > 0 for row in changes)
    figures = {
        "residues of the protein": f"{len(scan.wild_type):,}",
        "positions scanned": f"{first} to {last}",
        "changes scored": f"{len(changes):,}",
        "preferred to the wild type": f"{better:,}",
    }
    text = (
        "A score is the change of the log-likelihood in nats. Above 0 the model prefers the change (blue), below 0 the "
    )
    text += f"wild type (red), which a dot marks. The colours end at {limit(scan):.3g} nats either way."
    body = [
        page.paragraph(f"Strategy {', '.join(scan.strategies)}", "soft"),
        page.tiles(figures),
        page.section("Every change", page.figure(cells(scan), text)),
        *_tables(scan, changes),
        page.section("Origin", page.facts(facts)) if facts else Html(),
    ]
    return page.page(f"Scan of {scan.wild_type.id}", body, style())


def _tables(scan: Scan, changes: list[dict[str, Any]]) -> list[Html]:
    # Substitutions and deletions have sums of different lengths.
    ranked = sorted((row for row in changes if len(row["mt"]) == 1), key=lambda row: -row["score"])
    best, worst = ([_named(row) for row in part] for part in (ranked[:NUM_CHANGES], ranked[::-1][:NUM_CHANGES]))
    order = [int(i) for i in np.argsort(scan.mean, kind="stable") if np.isfinite(scan.mean[i])][:NUM_POSITIONS]
    kept = [(f"{scan.sequence[i]}{scan.positions[i]}", float(scan.mean[i])) for i in order]
    names = ("change", "score, nats")
    parts = [
        page.section("Best substitutions", page.table(names, best)),
        page.section("Worst substitutions", page.table(names, worst)),
        page.section("Positions to keep", page.table(("position", "mean score, nats"), kept)),
    ]
    return [page.pair(*parts)]


def _named(row: Mapping[str, Any]) -> tuple[str, float]:
    return f"{row['wt']}{row['pos']}{row['mt']}", row["score"]
