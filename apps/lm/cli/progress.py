"""Progress on standard error: a bar if that is a terminal, else one line now and then for the log that it goes to."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from protperf.lm.cli.common import say
from protperf.lm.cli.parameters import Groups, in_flags
from protperf.lm.watch import Stage, Watch

DELAY_S = 2.0
"""Seconds of work before a bar is shown."""
LOG_INTERVAL_S = 60.0
"""Seconds between two lines in a log."""
_REFRESH_S = 1.0
_FIRST_STEPS = "first steps"
"""What a training waits for when all is ready."""


def is_terminal() -> bool:
    """Whether a bar can be shown."""
    return sys.stderr.isatty()


def _terminal_size() -> dict[str, Any]:
    """Tqdm's arguments for the size: it asks the terminal, unless that says 0, as one without a window does."""
    try:
        known = all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):
        known = False
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}


def _bars() -> Any:
    """The class of bars, imported where one is shown: loading it takes longer than scoring a protein."""
    from tqdm import tqdm

    return tqdm


class CommandWatch(Watch):
    """Notes and stages of a command's work on standard error; neither if it is to be quiet."""

    def __init__(self, groups: Groups, quiet: bool) -> None:
        self._groups, self._quiet = groups, quiet
        self.shows_progress = self.takes_notes = not quiet

    def note(self, text: str) -> None:
        if not self._quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        say(in_flags(self._groups, text))

    def waiting(self, what: str, unit: str) -> Stage:
        if self._quiet:
            return Stage()
        if not is_terminal():
            return _LogStage(what, unit, None, "")
        # It goes away when it is done.
        return _BarStage(what, unit, None, leave=False)

    def working(self, what: str, unit: str, total: int | None, items: str) -> Stage:
        if self._quiet:
            return Stage()
        return _BarStage(what, unit, total, items) if is_terminal() else _LogStage(what, unit, total, items)


class _BarStage(Stage):
    """A bar: how far, how fast, how much longer."""

    def __init__(self, what: str, unit: str, total: int | None, items: str = "", *, leave: bool = True) -> None:
        self._items, self._completed = items, 0
        self._bar = _bars()(
            total=total, desc=what, unit=unit, unit_scale=True, file=sys.stderr, delay=DELAY_S, leave=leave,
            **_terminal_size(),
        )  # fmt: skip

    def update(self, count: int) -> None:
        self._bar.update(count)

    def skip(self, count: int) -> None:
        if self._bar.total is not None:
            self._bar.total -= count

    def complete(self, count: int) -> None:
        self._completed += count
        self._bar.set_postfix({self._items: self._completed}, refresh=False)

    def close(self) -> None:
        self._bar.close()


class _LogStage(Stage):
    """A line now and then with the same facts."""

    def __init__(self, what: str, unit: str, total: int | None, items: str) -> None:
        self._what, self._unit, self._total, self._items = what, unit.strip(), total, items
        self._done = self._completed = 0
        self._started = self._said = time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said >= LOG_INTERVAL_S:
            self._said = now
            say(f"{self._what}: {', '.join(self._facts(now - self._started))}")

    def skip(self, count: int) -> None:
        if self._total is not None:
            self._total -= count

    def complete(self, count: int) -> None:
        self._completed += count

    def _facts(self, passed_s: float) -> list[str]:
        speed = self._done / max(passed_s, 1e-9)
        counted = f"{_bars().format_sizeof(self._done)} {self._unit}"
        facts = [f"{counted} in {_bars().format_interval(passed_s)}"]
        if self._total:
            left_s = max(0, self._total - self._done) / max(speed, 1e-9)
            share = min(1.0, self._done / self._total)
            facts = [f"{share:.0%}", counted, f"{_bars().format_interval(left_s)} left"]
        return [*facts, f"{self._completed} {self._items}"] if self._items else facts


class TrainProgress(Watch):
    """Step, loss, tokens per second, validation and time left; before the first step, what is waited for.

    Progress is measured in steps, and until their number is known, in the time that a run was given: on a machine that
    has become busy, its steps take longer than that. Reports come every few steps, which may take minutes in a large
    model, so a thread moves the clock between them.
    """

    def __init__(self, groups: Groups | None, quiet: bool, time_s: float | None) -> None:
        """Nothing yet is known; without `groups`, messages name arguments as Python does."""
        self._groups = groups
        self._quiet, self._time_s, self._shows_bar = quiet, time_s, not quiet and is_terminal()
        self._bar = _bars()(
            total=time_s, disable=not self._shows_bar, file=sys.stderr, bar_format="{desc}", **_terminal_size()
        )
        self._line: dict[str, Any] = {}
        self._awaited = _FIRST_STEPS
        self._left_s: float | None = time_s
        self._heard = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        if self._shows_bar:
            self._draw()
        if not quiet:
            threading.Thread(target=self._tick, daemon=True).start()

    def report(self, line: dict[str, Any]) -> None:
        """Take in a line of metrics."""
        with self._lock:
            self._line |= {name: value for name, value in line.items() if value is not None}
            if "wall_s" in line:
                self._heard = time.monotonic()
                self._left_s = self._estimate()
            if self._shows_bar:
                self._draw()

    def __enter__(self) -> TrainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._lock:
            # A training that ended before its first step has nothing to show.
            self._bar.leave = bool(self._line)
            self._bar.close()

    def warn(self, text: str) -> None:
        """Say something without breaking the bar; notes only if it is not to be quiet."""
        if self._quiet and text.startswith("note: "):
            return
        with self._lock, _bars().external_write_mode(file=sys.stderr):
            say(text if self._groups is None else in_flags(self._groups, text))

    def waiting(self, what: str, unit: str) -> Stage:
        if not self._quiet and not self._shows_bar:
            # The next line of a log may be a minute away.
            self.warn(what)
        return _Awaited(self, what)

    def wait_for(self, what: str) -> None:
        """Show what is waited for until there are steps to show."""
        with self._lock:
            self._awaited = what
            if self._shows_bar:
                self._draw()

    def _tick(self) -> None:
        while not self._ended.wait(_REFRESH_S if self._shows_bar else LOG_INTERVAL_S):
            with self._lock:
                if self._ended.is_set():
                    return
                if self._shows_bar:
                    self._draw()
                else:
                    say(", ".join(_facts(self._line, self._now_left(), self._awaited)))

    def _estimate(self) -> float | None:
        line = self._line
        if "total_steps" in line and line["step"]:
            return max(0, line["total_steps"] - line["step"]) * line["wall_s"] / line["step"]
        return None if self._time_s is None else max(0.0, self._time_s - line["wall_s"])

    def _now_left(self) -> float | None:
        since = time.monotonic() - self._heard
        return None if self._left_s is None else max(0.0, self._left_s - since)

    def _draw(self) -> None:
        line, left = self._line, self._now_left()
        if "total_steps" in line:
            self._bar.total, self._bar.n = line["total_steps"], line["step"]
        elif self._time_s is not None and left is not None:
            self._bar.n = self._time_s - left
        known = self._bar.total is not None
        self._bar.bar_format = "{percentage:3.0f}%|{bar:6}| {desc}" if known else "{desc}"
        self._bar.set_description_str(", ".join(_facts(line, left, self._awaited)))


class _Awaited(Stage):
    """What a training waits for before its first step."""

    def __init__(self, progress: TrainProgress, what: str) -> None:
        self._progress = progress
        progress.wait_for(what)

    def close(self) -> None:
        self._progress.wait_for(_FIRST_STEPS)


def _facts(line: dict[str, Any], left_s: float | None, awaited: str) -> list[str]:
    total = f"/{line['total_steps']}" if "total_steps" in line else ""
    facts = [f"step {line['step']}{total}" if "step" in line else awaited]
    if left_s is not None:
        facts.append(f"{_bars().format_interval(left_s)} left")
    if "loss" in line:
        facts += [f"loss {line['loss']:.3f}", f"{_bars().format_sizeof(line['tokens_per_s'])} tokens/s"]
    # Left to right, then masked, if the model is trained for both.
    perplexities = [f"{line[name]:.1f}" for name in ("val_perplexity", "val_perplexity_masked") if name in line]
    return [*facts, f"ppl {'/'.join(perplexities)}"] if perplexities else facts
