"""How torch computes in this process: with one thread where sums must not depend on their number, and after a fork."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")

_setting = threading.Lock()


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute with one thread here: it divides the sums of a matrix product by its number of threads.

    torch keeps this number for each thread, and another one for threads that are yet to start. Setting the first also
    sets the second, which is put back at once: threads that start meanwhile keep the number of the program.
    """
    before = _set_own_threads(1)
    try:
        yield
    finally:
        _set_own_threads(before)


def _set_own_threads(count: int) -> int:
    """Set torch's number of threads for the calling thread alone; returns what it was."""
    # A thread that asks torch for the first time gets the number for new threads: not while that is changed.
    with _setting:
        before = torch.get_num_threads()
        if before != count:
            for_new = _in_new_thread(torch.get_num_threads)
            torch.set_num_threads(count)
            _in_new_thread(lambda: torch.set_num_threads(for_new))
        return before


def _in_new_thread(work: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


_loaded_in = os.getpid()


def check_fork(stacklevel: int = 3) -> None:
    """In a process forked from one that had loaded torch, compute with one thread of torch.

    Only the forking thread lives on in a forked process: torch would wait for its other threads for ever. A warning
    says so, once. Processes that are started anew (`spawn`) are not concerned.
    """
    global _loaded_in
    if os.getpid() == _loaded_in:
        return
    _loaded_in = os.getpid()
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        text = "this process was forked from one that uses torch, and computes with one thread of torch; start it anew "
        warnings.warn(text + '(multiprocessing\'s "spawn") to use more', stacklevel=stacklevel)
