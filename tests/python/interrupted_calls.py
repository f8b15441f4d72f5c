"""Runs in a process of its own: an alarm that acts as Ctrl-C goes off at random times inside of long calls.

Arguments: trials per case, and a folder for files. Prints one JSON line per case with the seconds from the signal to
the exception. They are seconds of the processor, of all threads together, and so is the time of the alarm: a machine
that is busy with something else adds nothing to them. The system sets the alarm off, so that a call that holds the GIL
cannot hide. One case never looks for signals, so that the limit is seen to be broken.
"""

import json
import os
import queue
import random
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

import protperf
from protperf import _native, alignment, io, pairwise
from protperf import torch as pt

torch.set_num_threads(1)
signal.signal(signal.SIGPROF, signal.default_int_handler)
RANDOM = random.Random(7)
LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)


def alarm(delay):
    """Set the alarm off after so many seconds of the processor; returns when that is."""
    due = time.process_time() + delay
    signal.setitimer(signal.ITIMER_PROF, delay)
    return due


def interrupted(call):
    """Seconds from the signal to its exception; the call is repeated until the signal comes."""
    due = alarm(RANDOM.uniform(0.005, 0.12))
    try:
        while True:
            call()
    except KeyboardInterrupt:
        return time.process_time() - due


def report(name, call, check, trials):
    needed = check()
    waits = []
    for _ in range(trials):
        waits.append(interrupted(call))
        found = check()
        assert all(np.array_equal(a, b) for a, b in zip(needed, found, strict=True)), f"{name}: other results"
    print(json.dumps({"case": name, "waits": waits}), flush=True)


def kernels():
    """Name, a call of a second or more, and a short call whose results must stay the same."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 60_000, 64)).astype(np.float32) for _ in range(3))
    omega = protperf.draw_projection(256, 64)
    few = [x[:, :, :200] for x in (q, k, v)]
    wide = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    narrow = [x[:, :, :200].detach().requires_grad_() for x in wide]
    directions = torch.from_numpy(omega).requires_grad_()

    def place(sequences, scores):
        return alignment.place(list(sequences), scores, gap_open=3.0, gap_extend=0.5)

    def gradients(tensors):
        out = pt.favor_attention(*tensors, directions, causal=True)
        return torch.autograd.grad(out, [*tensors, directions], torch.ones_like(out))

    yield "forward", lambda: protperf.favor_attention(q, k, v, omega), lambda: [protperf.favor_attention(*few, omega)]
    saved = pt.favor_attention(*wide, directions, causal=True)
    ones = torch.ones_like(saved)
    yield (
        "backward",
        lambda: torch.autograd.grad(saved, [*wide, directions], ones, retain_graph=True),
        lambda: [x.numpy() for x in gradients(narrow)],
    )
    long = [x[:, :1, :12_000] for x in (q, k, v)]
    yield "softmax", lambda: protperf.softmax_attention(*long), lambda: [protperf.softmax_attention(*few)]
    tall = np.ones((1, 1, 40_000_000, 1), np.float32)
    one = np.ones((1, 1, 1, 1), np.float32)
    yield (
        "scan of keys",
        lambda: protperf.favor_attention(one, tall, tall, one[0, 0]),
        lambda: [protperf.favor_attention(*few, omega)],
    )
    row, heads = np.ones((1, 96, 1, 128), np.float32), np.ones((96, 2048, 128))
    yield (
        "weights",
        lambda: protperf.favor_attention(row, row, row, heads),
        lambda: [protperf.favor_attention(*few, omega)],
    )
    yield "draw", lambda: protperf.draw_projection(2048, 2048), lambda: [protperf.draw_projection(20, 10)]
    state = np.zeros((1, 64, 4096, 66), np.float32)
    merged = np.empty_like(state)
    yield (
        "merge",
        lambda: _native.merge_states(state, state, merged, 64),
        lambda: [pt.merge_states(torch.ones(1, 1, 4, 6), torch.ones(1, 1, 4, 6)).numpy()],
    )
    text = "ACDEFGHIKLMNPQRSTVWY" * 3_000_000
    yield "encode", lambda: io.encode(text), lambda: [io.encode("ACDX")[0]]
    rows = rng.integers(0, 20, (20_000, 300), np.uint8)
    few_rows = np.ascontiguousarray(rows[:50, :6])
    yield "row weights", lambda: alignment.row_weights(rows), lambda: [alignment.row_weights(few_rows)]
    scores = np.ones((300, 20), np.float32)
    yield "places", lambda: place(rows, scores), lambda: [place(few_rows, scores)[0].columns]
    yield (
        "pairwise",
        lambda: pairwise.fit(rows, np.ones(len(rows))),
        lambda: [pairwise.fit(few_rows, np.ones(50)).couplings],
    )


def scans(trials, folder):
    """Reading continues where it was interrupted."""
    path = folder / "long.fasta"
    rng = np.random.default_rng(1)
    lines = [f">r{i}\n{LETTERS[rng.integers(0, 20, 2000)].tobytes().decode()}\n" for i in range(2000)]
    path.write_text("".join(lines) * 20)
    needed = [batch.tokens for batch in io.read_tokens(path)]
    waits = []
    for _ in range(trials):
        found, reader = [], io.read_tokens(path)
        due = alarm(RANDOM.uniform(0.001, 0.02))
        # The signal may also come between two batches, so all of the loop is inside of the `try`.
        try:
            found.extend(batch.tokens for batch in reader)
        except KeyboardInterrupt:
            waits.append(time.process_time() - due)
            found.extend(batch.tokens for batch in reader)
        signal.setitimer(signal.ITIMER_PROF, 0)
        # A batch may be lost if the signal comes after the reader has returned it.
        kept = [x for x in needed if any(np.array_equal(x, y) for y in found)]
        assert len(needed) - 1 <= len(found) == len(kept)
    assert len(waits) > trials // 2, f"the signal came within {len(waits)} of {trials} reads"
    again = [batch.tokens for batch in io.read_tokens(path)]
    assert all(np.array_equal(a, b) for a, b in zip(needed, again, strict=True))
    print(json.dumps({"case": "read", "waits": waits}), flush=True)


def scoring():
    from protperf.lm.model.config import ModelConfig
    from protperf.lm.model.network import Network
    from protperf.lm.model.torch_engine import TorchEngine
    from protperf.lm.scoring.likelihood import log_likelihoods

    residues = io.encode("ACDEFGHIKLMNPQRSTVWY" * 10_000)[0]
    for attention in ("relu", "exact"):
        config = ModelConfig.from_size("nano", attention=attention, objective="causal", seed=1)
        network = TorchEngine(Network(config).eval())
        yield (
            f"score {attention}",
            lambda n=network: log_likelihoods(n, [residues]),
            lambda n=network: log_likelihoods(n, [residues[:100]]),
        )


def other_thread():
    """The main thread is free while another runs a kernel, and the kernel's result is right.

    A third thread sends the signal to the process, as a terminal does, for the main thread sleeps: the system lets the
    thread that computes hear an alarm, and Python wakes nobody for that. A kernel that holds the GIL delays the third
    thread too, past the time that it was due.
    """
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 2, 100_000, 64)).astype(np.float32) for _ in range(3)]
    omega = protperf.draw_projection(1024, 64)
    needed = protperf.favor_attention(*arrays, omega)
    waits = []
    for _ in range(5):
        # A queue, for Python 3.11 takes a thread whose join was interrupted for one that has ended.
        found = queue.SimpleQueue()
        worker = threading.Thread(target=lambda f=found: f.put(protperf.favor_attention(*arrays, omega)))
        due = time.process_time() + RANDOM.uniform(0.02, 0.12)
        worker.start()
        threading.Thread(target=interrupt_at, args=(due,)).start()
        try:
            found.get()
            raise AssertionError("the kernel ended first")
        except KeyboardInterrupt:
            waits.append(time.process_time() - due)
        assert np.array_equal(found.get(), needed)
    print(json.dumps({"case": "other thread", "waits": waits}), flush=True)


def interrupt_at(due):
    """Interrupts this process once it has used so many seconds of the processor."""
    while time.process_time() < due:
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGPROF)


def deaf():
    """A call into the interpreter that does not look for signals and takes a second or more."""
    waits = [interrupted(lambda: sum(range(60_000_000))) for _ in range(2)]
    print(json.dumps({"case": "deaf", "waits": waits}), flush=True)


if __name__ == "__main__":
    trials, folder = int(sys.argv[1]), Path(sys.argv[2])
    for name, call, check in (*kernels(), *scoring()):
        report(name, call, check, trials)
    scans(trials, folder)
    other_thread()
    deaf()
    os._exit(0)
