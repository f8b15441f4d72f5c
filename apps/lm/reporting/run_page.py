"""A training as a page: what it learnt, its curves, its data, where it comes from, and every option."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protperf.lm.reporting import page
from protperf.lm.reporting.chart import STYLE, Series, chart
from protperf.lm.reporting.history import PERPLEXITIES, History
from protperf.lm.reporting.page import Html
from protperf.lm.storage.directory import CONFIG
from protperf.lm.training.verdict import verdict

_ORIGIN = ("command", "data", "init", "validation", "started")
_DIGESTS = ("model_sha256", "data_sha256", "validation_sha256")


def run_page(history: History, facts: Mapping[str, Any]) -> str:
    """The page of a run.

    Args:
        facts: what `protperf info` prints about it.
    """
    run = Path(facts["path"]).parent
    body = [
        page.paragraph(f"Step {facts['step']} of {run}", "soft"),
        *_judged(run, history),
        page.tiles(_figures(history, facts)),
        page.section("Training", page.pair(*_charts(history))),
        page.section("Data and origin", page.facts({name: facts[name] for name in _ORIGIN if facts.get(name)})),
        *_overlap(facts.get("overlap")),
        page.section("Configuration", *_configuration(run), _checksums(facts)),
    ]
    return page.page(f"Training of {run.name}", body, STYLE)


def _judged(run: Path, history: History) -> list[Html]:
    best = history.best
    if best is None or "unigram_perplexity" not in best:
        return [page.paragraph("Nothing was held out, so nothing says how much was learnt.")]
    judged = verdict(run, best["step"], best)
    text = "" if judged.learnt is None else judged.learnt[:1].upper() + judged.learnt[1:] + "."
    return [page.paragraph(each) for each in (text, judged.warning) if each]


def _figures(history: History, facts: Mapping[str, Any]) -> dict[str, object]:
    """What stands out."""
    best, last = history.best or {}, history.training[-1] if history.training else {}
    found: dict[str, object] = {"parameters": f"{facts['parameters']:,}"}
    for name, label in PERPLEXITIES.items():
        if best.get(name) is not None:
            found[f"perplexity of held-out sequences, {label}"] = f"{best[name]:.2f}"
    if best.get("unigram_perplexity") is not None:
        found["that of residue frequencies"] = f"{best['unigram_perplexity']:.2f}"
    found["tokens predicted in training"] = f"{facts['trained_tokens']:,}"
    if "wall_s" in last:
        found[f"time of {last['step']:,} steps"] = _duration(last["wall_s"])
    return found


def _charts(history: History) -> list[Html]:
    loss, speed = history.curve("loss").thinned(), history.curve("tokens_per_s").thinned()
    losses = [
        Series("", "a", loss, "faint"),
        Series("training", "a", loss.smoothed()),
        Series("validation", "b", history.curve("val_loss"), "dots"),
    ]
    unigram = history.curve("unigram_perplexity")
    perplexities = [
        *(
            Series(label, color, history.curve(name), "dots")
            for color, (name, label) in zip("bc", PERPLEXITIES.items(), strict=True)
        ),
        Series("residue frequencies", "d", unigram, "dash"),
    ]
    drawn = [
        ("loss, nats per target", losses, "Loss of the training, one batch and its moving mean, and of the validations")
    ]
    drawn.append(("perplexity", perplexities, "Perplexity of the sequences held out: 20 is a guess, 1 is certainty"))
    drawn.append(("learning rate", [Series("", "a", history.curve("lr").thinned())], ""))
    drawn.append(("tokens per second", [Series("", "a", speed)], ""))
    return [
        page.figure(chart(series, "optimizer step", name), caption)
        for name, series, caption in drawn
        if any(each.curve for each in series)
    ]


def _overlap(overlap: Mapping[str, int] | None) -> list[Html]:
    """How related the held-out sequences are to the others."""
    if not overlap or not overlap.get("looked_up"):
        return []
    total = overlap["looked_up"]
    rows = [
        (f"{name.removeprefix('related_')} identity", count, f"{count / total:.0%}")
        for name, count in overlap.items()
        if name != "looked_up"
    ]
    text = f"Of {total} held-out sequences, how many have a relative in the training set. The more there are, the less "
    text += "the perplexity says about proteins that are new to the model."
    return [page.section("Relatives", page.paragraph(text), page.table(("at", "sequences", "share"), rows))]


def _configuration(run: Path) -> list[Html]:
    """The tables of the file that a run was started with."""
    try:
        tables = tomllib.loads((run / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [
        page.folded(f"{name}: {len(values)} options", page.facts(values))
        for name, values in tables.items()
        if isinstance(values, dict)
    ]


def _checksums(facts: Mapping[str, Any]) -> Html:
    names = (*_DIGESTS, "version", "torch", "isa")
    return page.folded("checksums and versions", page.facts({name: facts[name] for name in names if name in facts}))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
