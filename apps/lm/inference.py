"""Run a network over sequences in bounded memory: packed, or one long sequence in chunks with carried state.

Sequences are packed, never padded. Memory does not grow with the number of sequences, nor with the length of one that
is read left to right.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from protperf.lm.model.network import ChunkState, Network

CHUNK = 4096
"""Tokens of one sequence that are read at once."""
EXACT_CHUNK = 512
"""The same with exact attention, whose memory is chunk times length."""

Tokens = NDArray[np.uint8]
T = TypeVar("T")


def in_batches(items: Iterable[T], size: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Consecutive items whose sizes sum to at most `budget`, or one item that is larger."""
    batch: list[T] = []
    total = 0
    for item in items:
        if batch and total + size(item) > budget:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch


def packed_logits(network: Network, sequences: Sequence[Tokens], mode: int) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Logits [N, vocabulary] of the N tokens of several sequences read in one pass, and the borders between them."""
    borders = np.cumsum([0, *(len(tokens) for tokens in sequences)])
    device = device_of(network)
    tokens = torch.from_numpy(np.concatenate(sequences)).to(device)
    with torch.inference_mode():
        return network(tokens, torch.from_numpy(borders).to(device), mode), borders


def chunked_logits(network: Network, tokens: Tokens, chunk: int | None = None) -> Iterator[torch.Tensor]:
    """Logits [n, vocabulary] of the tokens of one sequence, left to right, for `chunk` tokens at a time."""
    length = chunk or chunk_length(network)
    state, device = ChunkState(), device_of(network)
    for start in range(0, len(tokens), length):
        # A copy: torch does not take memory that may not be written to.
        part = torch.from_numpy(tokens[start : start + length].copy()).to(device)
        with torch.inference_mode():
            logits = network.causal_chunk(part, state)
        yield logits


def chunk_length(network: Network) -> int:
    """Tokens of one sequence that this network reads at once."""
    return EXACT_CHUNK if network.config.attention == "exact" else CHUNK


def device_of(network: torch.nn.Module) -> torch.device:
    """Where a network computes."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


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


def check_fork() -> None:
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
        warnings.warn(text + '(multiprocessing\'s "spawn") to use more', stacklevel=3)
