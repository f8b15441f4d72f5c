"""Runs in a process of its own: forks before, during and after use; each child must give the parent's bits and end.

Arguments: forks per case, then `numpy` or `torch`. Prints how many children were right. A child that hangs ends by its
own alarm and counts as wrong.
"""

import os
import signal
import sys
import threading
import traceback

import numpy as np

import protperf

FACE = sys.argv[2]
PATIENCE_S = 120
RNG = np.random.default_rng(3)
# Two threads have work: four heads, and enough of it for the pool.
ARRAYS = [RNG.standard_normal((1, 4, 400, 64)).astype(np.float32) for _ in range(3)]


def draw():
    return protperf.draw_projection(64, 64)


if FACE == "torch":
    import torch

    from protperf.torch import favor_attention

    # After a fork torch's own pool hangs with more threads than one; ours must not.
    torch.set_num_threads(1)

    def compute():
        q, k, v = (torch.from_numpy(x).requires_grad_() for x in ARRAYS)
        omega = torch.from_numpy(draw())
        out = favor_attention(q, k, v, omega, causal=True)
        grads = torch.autograd.grad(out, [q, k, v], torch.ones_like(out))
        return b"".join(x.detach().numpy().tobytes() for x in (out, *grads))
else:

    def compute():
        return protperf.favor_attention(*ARRAYS, draw(), causal=True).tobytes()


def child(needed, depth):
    """The child's exit code: 0 where its bits are the parent's; with a depth, those of its own children count too."""
    try:
        signal.alarm(PATIENCE_S)
        if compute() != needed:
            return 1
        if depth and fork(needed, depth - 1) != 0:
            return 3
        return 0
    except BaseException:
        traceback.print_exc()
        return 2


def fork(needed, depth=0):
    pid = os.fork()
    if pid == 0:
        os._exit(child(needed, depth))
    return os.waitpid(pid, 0)[1]


def other_process():
    """The parent's answer without any use in this process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        with os.fdopen(write, "wb") as file:
            file.write(compute())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        needed = file.read()
    os.waitpid(pid, 0)
    return needed


def main(forks):
    needed = other_process()
    codes = {"before": [fork(needed) for _ in range(forks)]}
    assert compute() == needed
    codes["after"] = [fork(needed) for _ in range(forks)]
    codes["twice"] = [fork(needed, depth=1) for _ in range(max(forks // 4, 1))]
    stop = threading.Event()
    wrong = []

    def use():
        while not stop.is_set():
            if compute() != needed:
                wrong.append("parent")

    users = [threading.Thread(target=use) for _ in range(2)]
    for user in users:
        user.start()
    codes["during"] = [fork(needed) for _ in range(forks)]
    stop.set()
    for user in users:
        user.join()
    assert not wrong
    assert compute() == needed
    for case, found in codes.items():
        print(f"{case}: {found.count(0)} of {len(found)} children right")
    sys.stdout.flush()
    os._exit(any(any(found) for found in codes.values()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
