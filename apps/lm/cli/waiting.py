"""How the idle workers of torch wait for work. No import of torch, nor of NumPy: this runs before every command."""

from __future__ import annotations

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What decides how workers wait: of OpenMP, of GNU's library, which torch has on Linux, and of LLVM's, on macOS."""


def sleep_when_idle() -> None:
    """Let workers sleep when they have nothing to do, unless the environment says how they are to wait.

    By default they spin for some milliseconds after each operation. On cores that are shared with another program, or
    with the pool of our own kernels, a worker that spins takes the time of one that computes, and every operation ends
    only when its last worker has had its turn. Asleep they cost some microseconds per operation to wake.

    OpenMP reads its variables once, when torch loads it; so this is called first, and has no effect later.
    """
    if not any(os.environ.get(name) for name in VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "passive"
