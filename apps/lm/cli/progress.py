"""Progress bars on standard error, where that is a terminal: how far, how fast, how long still."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tqdm import tqdm

from protperf.lm.cli.common import tell

_REFRESH_S = 1.0
DELAY_S = 2.0
"""Seconds of work before a scoring shows a bar."""


def shows(quiet: bool) -> bool:
    """Whether a bar is wanted."""
    return sys.stderr.isatty() and not quiet


def _size() -> dict[str, Any]:
    """What tqdm is told of the terminal: to ask for its size, unless it says 0, as one without a window does."""
    try:
        known = all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def waiting(what: str, unit: str, quiet: bool = False) -> tqdm[Any]:
    """A count of something whose end is not known, such as residues read; it goes away when it is done."""
    return tqdm(
        desc=what, unit=unit, unit_scale=True, disable=not shows(quiet), file=sys.stderr, delay=DELAY_S, leave=False,
        **_size(),
    )  # fmt: skip


class ScoreBar:
    """Tokens read so far, of all where their number is known, and proteins done."""

    def __init__(self, total: int | None, quiet: bool) -> None:
        self._proteins = 0
        self._bar = tqdm(
            total=total, desc="scoring", unit="token", unit_scale=True, disable=not shows(quiet),
            file=sys.stderr, delay=DELAY_S, **_size(),
        )  # fmt: skip

    def __enter__(self) -> ScoreBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the bar as it is; what is told from now on stands below it."""
        self._bar.close()

    def tokens(self, count: int) -> None:
        self._bar.update(count)

    def passed(self, records: Iterator[Any], size: Callable[[Any], int]) -> Iterator[Any]:
        """Records that were scored before: their tokens are no work of this run."""
        for record in records:
            if self._bar.total is not None:
                self._bar.total -= size(record)
            yield record

    def proteins(self, count: int) -> None:
        self._proteins += count
        self._bar.set_postfix(proteins=self._proteins, refresh=False)


class TrainBar:
    """Step, loss, tokens a second, validation and time left.

    Steps measure a run, and until their number is known, the clock one of a given time: on a machine that became busy
    its steps take longer than they were given. Reports come every few steps, which may take minutes in a large model,
    so a thread moves the clock between them.
    """

    def __init__(self, quiet: bool, time_s: float | None) -> None:
        self._time_s = time_s
        self._bar = tqdm(total=time_s, disable=not shows(quiet), file=sys.stderr, bar_format="{desc}", **_size())
        self._line: dict[str, Any] = {}
        self._left_s: float | None = time_s
        self._heard = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        if not self._bar.disable:
            self._draw()
            threading.Thread(target=self._tick, daemon=True).start()

    def report(self, line: dict[str, Any]) -> None:
        """Take in a line of metrics."""
        if self._bar.disable:
            return
        with self._lock:
            self._line |= {name: value for name, value in line.items() if value is not None}
            if "wall_s" in line:
                self._heard = time.monotonic()
                self._left_s = self._estimate()
            self._draw()

    def __enter__(self) -> TrainBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._lock:
            # Of what ended before its first step there is nothing to show.
            self._bar.leave = bool(self._line)
            self._bar.close()

    def warn(self, text: str) -> None:
        """Tell something without tearing the bar."""
        with self._lock, tqdm.external_write_mode(file=sys.stderr):
            tell(text)

    def _tick(self) -> None:
        while not self._ended.wait(_REFRESH_S):
            with self._lock:
                if not self._ended.is_set():
                    self._draw()

    def _estimate(self) -> float | None:
        line = self._line
        if "total_steps" in line and line["step"]:
            return max(0, line["total_steps"] - line["step"]) * line["wall_s"] / line["step"]
        return None if self._time_s is None else max(0.0, self._time_s - line["wall_s"])

    def _draw(self) -> None:
        since = time.monotonic() - self._heard
        line, left = self._line, None if self._left_s is None else max(0.0, self._left_s - since)
        if "total_steps" in line:
            self._bar.total, self._bar.n = line["total_steps"], line["step"]
        elif self._time_s is not None and left is not None:
            self._bar.n = self._time_s - left
        known = self._bar.total is not None
        self._bar.bar_format = "{percentage:3.0f}%|{bar:6}| {desc}" if known else "{desc}"
        self._bar.set_description_str(", ".join(_facts(line, left)))


def _facts(line: dict[str, Any], left_s: float | None) -> list[str]:
    total = f"/{line['total_steps']}" if "total_steps" in line else ""
    facts = [f"step {line['step']}{total}" if "step" in line else "first steps"]
    if left_s is not None:
        facts.append(f"{tqdm.format_interval(left_s)} left")
    if "loss" in line:
        facts += [f"loss {line['loss']:.3f}", f"{tqdm.format_sizeof(line['tokens_per_s'])} tokens/s"]
    # Left to right, then masked, where the model is trained for both.
    perplexities = [f"{line[name]:.1f}" for name in ("val_perplexity", "val_perplexity_masked") if name in line]
    return [*facts, f"ppl {'/'.join(perplexities)}"] if perplexities else facts
