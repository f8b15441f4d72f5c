"""What every bench needs: the machine, the time that something takes, and a table; independent of what is measured."""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Timing:
    """Wall times of one callable, in milliseconds."""

    times_ms: tuple[float, ...]

    @property
    def best(self) -> float:
        """The shortest: what the code can do when the machine leaves it alone."""
        return min(self.times_ms)

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.times_ms)

    def __str__(self) -> str:
        return f"{self.best:.2f}–{self.median:.2f}"


def interleave(
    callables: Mapping[str, Callable[[], object]], *, seconds: float = 1.5, max_turns: int = 40
) -> dict[str, Timing]:
    """Time callables in turn, so that a noisy minute affects all of them; each is called once before.

    Args:
        callables: name -> what to time.
        seconds: a callable gets no more turns once its calls took this long, after at least three of them (one, if a
            call takes longer than this).
        max_turns: the largest number of turns.
    """
    times: dict[str, list[float]] = {name: [] for name in callables}
    first: dict[str, float] = {}
    for name, call in callables.items():
        start = time.perf_counter()
        call()
        first[name] = time.perf_counter() - start
    for _ in range(max_turns):
        for name, call in callables.items():
            spent = sum(times[name])
            if spent >= seconds and (len(times[name]) >= 3 or first[name] > seconds):
                continue
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(1e3 * t for t in found)) for name, found in times.items()}


def ceilings(threads: int) -> dict[str, float]:
    """Multiply-adds and exponentials per second that this machine reaches now, on one thread and on `threads`.

    Raises:
        subprocess.CalledProcessError: the Rust bench did not build or run.
    """
    command = ["cargo", "bench", "--quiet", "--locked", "-p", "protperf-cpu", "--bench", "ceilings"]
    environment = {**os.environ, "PROTPERF_NUM_THREADS": str(threads)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return json.loads(answer.stdout)


def describe(rates: Mapping[str, float]) -> str:
    """What `ceilings` found, in words."""
    one, together = ("flops_one", "exps_one"), ("flops_all", "exps_all")
    figures = [
        f"{rates[flops] / 1e9:.0f} GFLOP/s and {rates[exps] / 1e9:.1f} Gexp/s" for flops, exps in (one, together)
    ]
    return f"Ceilings: {figures[0]} on one thread, {figures[1]} on all."


def allowed_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def describe_machine() -> str:
    """Processor, cores allowed, load and commit in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    git = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "no commit"
    return f"{model}, {len(allowed_cores())} cores, load {os.getloadavg()[0]:.1f}, commit {commit}"


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also aligned in a terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(row([c.rjust(w) for c, w in zip(line, widths, strict=True)]) for line in lines)
