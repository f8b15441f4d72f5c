"""Runs in a process of its own: many Python threads call everything at once; results equal those of one thread.

Arguments: threads, rounds per thread, a folder for files. A hang ends with a dump of all stacks.
"""

import faulthandler
import os
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import torch

import protperf
from protperf import io
from protperf import torch as pt

torch.set_num_threads(1)


def operations(folder):
    """Callables without arguments that return lists of arrays, the same at every call."""
    path = folder / "some.fasta"
    path.write_text("".join(f">r{i} x\nMKV{'ACDEFGHIKL' * (i % 7)}\nWY\n" for i in range(300)))
    rng = np.random.default_rng(0)
    made = [lambda: [batch.tokens for batch in io.read_tokens(path)]]
    made.append(lambda: [protperf.draw_projection(48, 16, seed=3, stream=(1, 2, 3))])
    made.append(lambda: [io.encode("ACDEFGHIKLMNPQRSTVWYX" * 50)[0]])
    for dtype in (np.float32, np.float64):
        # The second is large enough for the pool.
        for length, width, features in ((37, 8, 16), (300, 64, 96)):
            arrays = [rng.standard_normal((1, 4, length, width)).astype(dtype) for _ in range(3)]
            omega = protperf.draw_projection(features, width)
            made.append(lambda x=arrays, o=omega: [protperf.favor_attention(*x, o, causal=True)])
            made.append(lambda x=arrays, o=omega: gradients(x, o))
            made.append(lambda x=arrays, o=omega: merged(x, o))
        made.append(lambda x=[y[:, :1, :40] for y in arrays]: [protperf.softmax_attention(*x)])
    return made


def gradients(arrays, omega):
    leaves = [torch.from_numpy(x).requires_grad_() for x in (*arrays, omega)]
    out = pt.favor_attention(*leaves, feature_map="hyperbolic")
    return [x.detach().numpy() for x in (out, *torch.autograd.grad(out, leaves, torch.ones_like(out)))]


def merged(arrays, omega):
    q, k, v, omega = (torch.from_numpy(x) for x in (*arrays, omega))
    state = pt.favor_attention_with_state(q, k, v, omega)[1]
    return [pt.merge_states(state, state).numpy()]


def run_all(bodies):
    """Runs each body in a thread that starts when all are ready; what they raised is raised again."""
    barrier, raised = threading.Barrier(len(bodies)), []

    def guarded(body):
        barrier.wait()
        try:
            body()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]


def mixed(num_threads, rounds, folder):
    made = operations(folder)
    needed = [call() for call in made]

    def body(number):
        for turn in range(rounds):
            at = (number + turn) % len(made)
            found = made[at]()
            assert all(np.array_equal(a, b) for a, b in zip(needed[at], found, strict=True)), at

    run_all([partial(body, number) for number in range(num_threads)])
    print(f"{num_threads} threads, {num_threads * rounds} calls of {len(made)} operations: 0 differences")


def redrawn(rounds):
    """Modules that share omega work while another thread redraws it; afterwards they are exact again."""
    q, k, v = (torch.randn(1, 2, 50, 16, generator=torch.Generator().manual_seed(0)) for _ in range(3))
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        one, two = (pt.nn.FavorAttention(16, 64, causal=causal) for causal in (False, True))
        two.omega = one.omega
        needed = [module(q, k, v) for module in (one, two)]

        def use(module):
            for _ in range(rounds):
                # Omega may be torn, so the values are any estimate; they are finite and of the right shape.
                assert module(q, k, v).isfinite().all()

        def redraw(module):
            for draw in range(rounds):
                module.redraw(draw)

        run_all([partial(body, module) for body in (use, redraw) for module in (one, two)])
        one.redraw(0)
        assert all(torch.equal(a, b) for a, b in zip(needed, (one(q, k, v), two(q, k, v)), strict=True))
    torch.set_default_dtype(torch.float32)
    print(f"two modules share omega, {2 * rounds} redraws during {2 * rounds} calls: exact afterwards")


LIMIT_S = 600

if __name__ == "__main__":
    num_threads, rounds, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    faulthandler.dump_traceback_later(LIMIT_S * max(1, rounds // 8), exit=True)
    sys.setswitchinterval(1e-6)
    mixed(num_threads, rounds, folder)
    redrawn(10 * rounds)
    sys.stdout.flush()
    os._exit(0)
