"""torch's own threads for short calls of ours.

torch's OpenMP workers spin for milliseconds after each of its operations, to be awake for the next. A call of ours in
between would share its cores with them, so short ones run on these workers, as torch's operations do. Where they do not
spin (`OMP_WAIT_POLICY=passive`), and where torch brings another library than GNU's, there is a pool of our own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

from protperf import _native

__all__ = ["share_threads"]


def share_threads() -> None:
    """Make torch's workers known: those of the thread that calls this. Importing `protperf.torch` does so.

    A forked child has none, and keeps to the pool. It may call this where its parent has computed nothing with torch.
    """
    if sys.platform != "linux" or os.environ.get("OMP_WAIT_POLICY", "").strip().lower() == "passive":
        return
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        try:
            # Found only if it is the one that torch has loaded.
            library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            functions = (library.GOMP_parallel, library.omp_get_max_threads)
        except (OSError, AttributeError):
            continue
        parallel, max_threads = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
        _native.use_team(parallel, max_threads)
        return
