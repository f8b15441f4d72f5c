"""Runs in a process of its own: does one thing very often and prints how memory, files and threads grew.

Arguments: what, how often, a folder. The first half of the calls warms up: caches fill and allocators settle.
Prints one JSON line: kilobytes of resident memory after the warm-up, and how many were added to the end.
"""

import contextlib
import ctypes
import gc
import json
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

import protperf
from protperf import io
from protperf import torch as pt

torch.set_num_threads(1)
PAGE = resource.getpagesize()


def resident():
    """Kilobytes of memory in use, read in a state that does not depend on the latest calls."""
    settle()
    gc.collect()
    # The free pages between blocks in use; only glibc has the call.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE // 1024


def settle():
    """Make calls after which every thread keeps scratch of the same four shapes, those of its latest tasks.

    The calls are made twice, so that a thread of the pool that gets no core for one takes part in the other.
    """
    for num_features in (72, 80, 88, 96) * 2:
        omega = torch.from_numpy(protperf.draw_projection(num_features, 16))
        # The first is shared out to the pool, the second is done by the calling thread.
        for length in (2000, 8):
            x = torch.ones(1, 8, length, 16, requires_grad=True)
            out = pt.favor_attention(x, x, x, omega)
            torch.autograd.grad(out, [x], torch.ones_like(out))


def held():
    """Open files and threads; a thread that was joined may still be listed for a moment."""
    time.sleep(0.1)
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def attention():
    """Forward and backward in shapes, types, maps and forms that vary; some are large enough for the pool."""
    chosen = random.Random(0)
    numbers = torch.from_numpy(np.random.default_rng(0).standard_normal(200_000))
    omegas = {(m, d): torch.from_numpy(protperf.draw_projection(m, d)) for m in (8, 33, 64) for d in (4, 16, 33)}
    while True:
        attend(chosen, numbers, omegas)
        yield


def attend(chosen, numbers, omegas):
    """One call: in a function of its own, so that none of its tensors is alive when memory is read."""
    (_, d), omega = chosen.choice(list(omegas.items()))
    length, heads, e = (
        chosen.choice((0, 1, 7, 63, 64, 65, 130)),
        chosen.choice((1, 2, 4)),
        chosen.choice((1, 8, 20)),
    )
    if chosen.random() < 0.02:
        length, heads = 500, 4
    dtype = chosen.choice((torch.float32, torch.float64))
    causal = chosen.random() < 0.5

    def some(width):
        count = heads * length * width
        return numbers[:count].reshape(1, heads, length, width).to(dtype).requires_grad_()

    q, k, v = some(d), some(d), some(e)
    options = {}
    if chosen.random() < 0.2:
        options["cu_seqlens"] = torch.tensor([0, length // 3, length])
    elif chosen.random() < 0.2:
        options["key_padding_mask"] = torch.zeros(1, length, dtype=torch.bool)
    feature_map = chosen.choice(protperf.feature_maps())
    out = pt.favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal, **options)
    torch.autograd.grad(out, [q, k, v], torch.ones_like(out))


def fasta(folder):
    path = folder / "some.fasta"
    path.write_text("".join(f">r{i} x\n{'ACDEFGHIKL' * 20}\n" for i in range(200)))
    while True:
        for options in ({}, {"memory_map": True}):
            for _ in io.read_tokens(path, **options):
                pass
        next(io.read_tokens(path))
        with contextlib.suppress(FileNotFoundError):
            next(io.read_tokens(folder / "absent.fasta"))
        yield


def checkpoint(folder):
    from protperf import lm

    path = folder / "train.fasta"
    rng = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    path.write_text("".join(f">t{i}\n{''.join(rng.choice(letters, 40))}\n" for i in range(30)))
    lm.train(path, folder / "run", steps=2, batch_tokens=200, validate=0.1, warmup=1)
    while True:
        lm.load(folder / "run")
        yield


def cancelled():
    """Calls that a signal stops while the pool works."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    x = np.ones((1, 2, 60_000, 64), np.float32)
    omega = protperf.draw_projection(64, 64)
    leaves = [torch.from_numpy(x).requires_grad_() for _ in range(3)]
    out = pt.favor_attention(*leaves, torch.from_numpy(omega))
    calls = (
        lambda: protperf.favor_attention(x, x, x, omega),
        lambda: torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True),
    )
    while True:
        for call in calls:
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                while True:
                    call()
            yield


def main(what, times, folder):
    steps = {
        "attention": attention,
        "fasta": lambda: fasta(folder),
        "checkpoint": lambda: checkpoint(folder),
        "cancelled": cancelled,
    }[what]()
    for _ in range(times // 2):
        next(steps)
    start, things = resident(), held()
    for _ in range(times - times // 2):
        next(steps)
    added = resident() - start
    files, threads = (now - before for now, before in zip(held(), things, strict=True))
    print(
        json.dumps({"what": what, "calls": times, "start": start, "added": added, "files": files, "threads": threads})
    )
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
