"""Curves as text, picture and page, and a scan as a page: what they show is what was measured, and they stand alone."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import error_line, in_process

import protperf.lm as lm
from protperf import errors
from protperf.lm.reporting import curve_plot
from protperf.lm.reporting.cells import PER_ROW, STEPS, cells
from protperf.lm.reporting.history import Curve, read_history
from protperf.lm.reporting.scan_page import scan_page
from protperf.lm.reporting.text_plot import curves
from protperf.lm.scan.heatmap import ORDER, limit
from protperf.lm.scan.scan import LETTERS, Plan, Scan
from protperf.lm.variants.wild_type import read_wild_type

VOID = {"meta", "br", "hr"}
WILD = "MKVLAACDWYGHKRTEQNPSFI" * 4


class Parsed(html.parser.HTMLParser):
    """Elements of a page with their attributes, its text, and whether every element that opens also closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def standalone(text: str) -> Parsed:
    """A page that is well formed, asks for nothing else, and has room for a phone and the dark."""
    parsed = Parsed(text)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & {tag for tag, _ in parsed.elements}
    named = {name for _, attributes in parsed.elements for name in attributes}
    assert not {name for name in named if name.startswith("on")} | named & {"src", "href", "xlink:href", "srcset"}
    assert "url(" not in text
    assert "://" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme:dark" in text
    assert ("meta", {"name": "viewport", "content": "width=device-width,initial-scale=1"}) in parsed.elements
    return parsed


def written(folder: Path, lines: list[dict[str, object]]) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_curves_are_the_lines_of_the_metrics_without_what_is_torn_or_missing(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [{"step": 10 * i, "loss": 3.0 - 0.1 * i, "lr": 1e-3} for i in range(1, 6)]
    lines += [{"step": 20, "val_loss": 2.5, "val_perplexity": 12.2}, {"step": 50, "val_loss": 2.4}]
    lines += [{"step": 60, "val_loss": 2.7, "val_perplexity": None}]
    run = written(tmp_path / "run", lines)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('17\n{"loss": 1}\n{"step": 60, "lo')
    history = read_history(run)
    assert history.curve("loss") == Curve([10, 20, 30, 40, 50], pytest.approx([2.9, 2.8, 2.7, 2.6, 2.5]))
    assert history.curve("val_perplexity") == Curve([20], [12.2])
    assert history.best == lines[-2]
    assert not history.curve("val_perplexity_masked")


def test_a_long_curve_is_the_means_of_neighbours() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=1001).tolist()
    long = Curve([float(i) for i in range(1001)], values)
    short = long.thinned(250)
    assert len(short.steps) == len(short.values) == 201
    assert short.values[3] == pytest.approx(np.mean(values[15:20]))
    assert short.steps[3] == 17
    assert short.steps[-1] == 1000
    smooth = long.smoothed()
    assert smooth.steps == long.steps
    assert smooth.values[500] == pytest.approx(np.mean(values[475:526]))
    assert smooth.values[0] == pytest.approx(np.mean(values[:26]))
    assert Curve([1.0], [2.0]).thinned() == Curve([1.0], [2.0])


def test_text_curves_fall_where_the_loss_does_and_fit_the_width(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [{"step": i, "loss": 4.0 - i / 100} for i in range(1, 101)]
    lines += [{"step": 50, "val_loss": 1.0, "val_perplexity": 7.5}]
    text = curves(read_history(written(tmp_path / "run", lines)), width=60, height=6)
    rows = text.splitlines()
    assert max(map(len, rows)) <= 60
    assert rows[0] == "loss, nats per target"
    assert rows[1].startswith("   3.99 │")
    assert rows[6].startswith("      3 │")
    drawn = [[ord(c) != 0x2800 for c in row.partition("│")[2]] for row in rows[1:7]]
    # Each column of a falling line is no higher than the one before it.
    tops = [next(y for y in range(6) if drawn[y][x]) for x in range(len(drawn[0]))]
    assert tops == sorted(tops)
    assert (tops[0], tops[-1]) == (0, 5)
    assert "step 1" in rows[8]
    assert rows[8].endswith("100")
    assert "perplexity of the validations, left to right" in rows
    # A single point is drawn, too.
    assert any(0x2800 < ord(c) <= 0x28FF for row in rows[10:] for c in row)


def test_the_picture_of_a_training_shows_its_metrics(runs: dict[str, Path]) -> None:
    history = read_history(runs["both"])
    left, right = curve_plot.draw(history, "a$b$").axes
    lines = {line.get_label(): line.get_xydata() for line in (*left.get_lines(), *right.get_lines())}
    for name, label in (("val_perplexity", "left to right"), ("val_perplexity_masked", "masked")):
        curve = history.curve(name)
        found = lines[f"validation, {label}"]
        np.testing.assert_array_equal(found, np.column_stack([curve.steps, curve.values]))
    assert lines["residue frequencies"][0][1] == history.curve("unigram_perplexity").values[-1]


def test_the_report_of_a_run_has_its_figures_and_stands_alone(runs: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "run.html"
    result = in_process("info", runs["both"], "--report", page, "--plot", tmp_path / "run.svg", "--curves")
    assert (result.returncode, result.stderr) == (0, b"")
    assert "perplexity of the validations, left to right and masked" in result.stdout.decode()
    assert (tmp_path / "run.svg").read_bytes().startswith(b"<?xml")
    parsed = standalone(page.read_text())
    facts, best = lm.info(runs["both"]), read_history(runs["both"]).best
    assert best is not None
    shown = [f"{facts['parameters']:,}", f"{best['val_perplexity']:.2f}", f"{best['val_perplexity_masked']:.2f}"]
    shown += [f"{best['unigram_perplexity']:.2f}", facts["data"], facts["data_sha256"], facts["started"], "feature"]
    shown += ["taught the model little or nothing", "held-out sequences", "warmup", "Relatives"]
    assert [text for text in shown if str(text) not in parsed.text] == []
    again = tmp_path / "again.html"
    # A step is reported as its run is.
    lm.report(facts["path"], again)
    assert again.read_bytes() == page.read_bytes()


def test_what_has_no_training_is_refused_by_name(runs: dict[str, Path], tmp_path: Path) -> None:
    lm.baseline((), tmp_path / "blosum", kind="blosum")
    for words in (["--report", tmp_path / "x.html"], ["--plot", tmp_path / "x.png"], ["--curves"]):
        result = in_process("info", tmp_path / "blosum", *words)
        assert result.returncode == 2
        assert "has no metrics.jsonl, from which curves are drawn" in error_line(result)
    assert not list(tmp_path.glob("x.*"))
    assert "no such run directory" in error_line(in_process("info", tmp_path / "none", "--report", "x.html"))
    assert "--report is x.pdf" in error_line(in_process("info", runs["both"], "--report", "x.pdf"))
    assert "--curves is text" in error_line(in_process("info", runs["both"], "--json", "--curves"))
    assert in_process("info", runs["both"], "--report", tmp_path / "none" / "x.html").returncode == 3
    empty = tmp_path / "copy"
    shutil.copytree(runs["both"], empty)
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(errors.ConfigError, match="has no line yet"):
        lm.report(empty, tmp_path / "x.html")


def planted(letters: str, dels: bool = False, name: str = "p") -> Scan:
    """A scan of known scores, from bad to good."""
    wild = read_wild_type([(name, letters)], 5)
    scan = Scan(Plan(wild, 0, len(letters), dels), ("full",))
    rng = np.random.default_rng(2)
    for i in range(len(letters)):
        for change in scan.plan.changes(i):
            if change.variant is not None:
                scan.put(change, rng.normal(-2, 2, 2))
    return scan


def places(page: str) -> dict[tuple[int, int], str]:
    """The class of each cell, by column and row."""
    found = {}
    for row, drawing in enumerate(re.findall(r"<svg.*?</svg>", page, re.DOTALL)):
        for kind, path in re.findall(r'<path class="(\w+)" d="([^"]*)"', drawing):
            for x, y in re.findall(r"M(\d+) (\d+)h", path):
                at = (row * PER_ROW + (int(x) - 24) // 10, (int(y) - 14) // 10)
                assert at not in found
                found[at] = kind
    return found


def test_every_cell_has_the_colour_of_its_score() -> None:
    scan = planted(WILD[:30] + "X" + WILD[31:], dels=True)
    found = places(cells(scan))
    top, names = limit(scan), [*ORDER, "del"]
    assert len(found) == len(WILD) * 21
    for (x, y), kind in found.items():
        if names[y] == "del":
            assert scan.deletions_per_residue is not None
            value = scan.deletions_per_residue[x] * len(WILD)
        else:
            value = scan.matrix[x, LETTERS.index(names[y])]
        step = min(STEPS, round(abs(value) / top * STEPS)) if np.isfinite(value) else None
        assert kind == ("none" if step is None else f"{'w' if value < 0 else 'x'}{step}")
    assert {found[30, y] for y in range(21)} == {"none"}
    marks = re.findall(r'<circle class="wild" cx="(\d+)" cy="(\d+)"', cells(scan))
    seen = [ORDER[(int(y) - 19) // 10] for _, y in marks]
    assert seen == [letter for letter in scan.sequence if letter in ORDER]


def test_the_report_of_a_scan_ranks_the_changes_and_escapes_names() -> None:
    scan = planted(WILD, name="<script>alert(1)</script>&")
    parsed = standalone(scan_page(scan, {"model": "<b>x</b>"}))
    assert "Scan of <script>alert(1)</script>&" in parsed.text
    rows = sorted(scan.table, key=lambda row: -row["score"])
    for row in (*rows[:25], *rows[-25:]):
        assert f"{row['wt']}{row['pos']}{row['mt']}{row['score']:.3f}" in parsed.text
    assert f"{sum(row['score'] > 0 for row in rows):,}" in parsed.text
    assert f"{rows[25]['wt']}{rows[25]['pos']}{rows[25]['mt']}{rows[25]['score']:.3f}" not in parsed.text


def test_the_command_writes_the_page_that_python_writes(runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["scan", runs["both"], WILD[:25], "--strategy", "wt", "-q", "-o", tmp_path / "scan.tsv"]
    first, second = tmp_path / "a.html", tmp_path / "b.html"
    assert in_process(*words, "--report", first).returncode == 0
    assert in_process(*words, "--report", second).returncode == 0
    assert first.read_bytes() == second.read_bytes()
    parsed = standalone(first.read_text())
    assert lm.info(runs["both"])["model_sha256"] in parsed.text
    lm.load(runs["both"]).scan(WILD[:25], strategy="wt").report(second)
    # All but the origin, which an array of scores does not have.
    assert places(second.read_text()) == places(first.read_text())
    assert in_process(*words, "--report", tmp_path / "scan.tsv").returncode == 2
    assert in_process(*words, "--report", tmp_path / "none" / "x.html").returncode == 3
