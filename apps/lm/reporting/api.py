"""The report of a run, and its curves, as files: what `protperf info` writes, and Python's `lm.report`."""

from __future__ import annotations

import os
from pathlib import Path

from protperf.lm import picture
from protperf.lm.facts import info
from protperf.lm.reporting import curve_plot, page
from protperf.lm.reporting.history import read_history
from protperf.lm.reporting.run_page import run_page
from protperf.lm.tables.destination import check_target


def report(run: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write the report of a training: one page of HTML that needs no other file and no connection.

    Raises:
        ConfigError: the directory is not that of a training; MissingFileError, CheckpointError, FileError: a file
        cannot be read or written.
    """
    target = Path(out)
    check_target(target, ())
    # Before the model is looked at: whether this is a training at all.
    history = read_history(Path(run))
    page.save(run_page(history, info(run)), target)


def plot_curves(run: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write loss and perplexity by step as a picture, PNG or SVG by the suffix.

    Raises:
        MissingPackageError: matplotlib is not installed; others as `report`.
    """
    target = Path(out)
    picture.require("a plot")
    check_target(target, ())
    picture.save(curve_plot.draw(read_history(Path(run)), str(run)), target)
