"""The number of threads that calls use: the one place that reads the environment for it.

In this order: `PROTPERF_NUM_THREADS`; the number that the calling library has chosen (torch's); `OMP_NUM_THREADS`;
`SLURM_CPUS_PER_TASK`; every core. All but the first are limited to the cores that affinity and the control group's
quota allow this process, for more threads than that only wait for each other.
"""

from __future__ import annotations

import functools
import os

from protperf import _native
from protperf.errors import ConfigError

__all__ = ["cores_allowed", "num_threads"]

_MAX = 4096


def num_threads(fallback: int | None = None) -> int:
    """Threads of a call; `fallback` is the number that a library next to ours uses.

    Raises:
        ConfigError: `PROTPERF_NUM_THREADS` is not a number from 1 to 4096.
    """
    text = os.environ.get("PROTPERF_NUM_THREADS", "")
    if text:
        if not text.isdigit() or not 1 <= int(text) <= _MAX:
            raise ConfigError(f"PROTPERF_NUM_THREADS is {text!r}; it must be a number from 1 to {_MAX}")
        return int(text)
    allowed = cores_allowed()
    chosen = fallback or _from_other_programs()
    return allowed if chosen is None else max(1, min(chosen, allowed))


def cores_allowed() -> int:
    """Cores that affinity and the control group's quota allow this process."""
    affinity = getattr(os, "sched_getaffinity", None)
    return _cores_allowed(len(affinity(0)) if affinity else 0)


@functools.lru_cache(maxsize=8)
def _cores_allowed(_affinity: int) -> int:
    """Read anew when the affinity has another size: the quota lies in files, which are too slow for every call."""
    return _native.cores_allowed()


def _from_other_programs() -> int | None:
    """The number that OpenMP or Slurm was given. What they do not understand we ignore, as OpenMP does."""
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        # OpenMP takes a list, one number per level of nested parallel regions: the first is ours.
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isascii() and first.isdigit() and int(first) > 0:
            return int(first)
    return None
