"""Short calls run on torch's own threads, where there are some, and on the pool everywhere else: the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from machine import HANG_S

from protperf.threads import cores_allowed

PROGRAM = """
import json, os, re, sys, threading
import torch
from pathlib import Path
import protperf
from protperf.torch import favor_attention

torch.set_num_threads(int(sys.argv[1]))
generator = torch.Generator().manual_seed(0)
# Too small for torch's own operations to be parallel, which hang in a forked child.
q, k, v = (torch.randn(1, 4, 250, 32, generator=generator) for _ in range(3))
omega = torch.randn(512, 32, generator=generator)


def pool():
    # The thread of a call has another name, and may still be on its way out.
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum(re.match("protperf-[0-9]", name) is not None for name in names)


def bits():
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = favor_attention(*leaves, omega, causal=True)
    out.square().sum().backward()
    return [x.detach().numpy().tobytes() for x in (out, *(leaf.grad for leaf in leaves))]


def elsewhere(found):
    found.append(bits())


here, answers = bits(), []
pools = [pool()]
thread = threading.Thread(target=elsewhere, args=(answers,))
thread.start()
thread.join()
pools.append(pool())
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.write(write, b"1" if bits() == here else b"0")
    os._exit(0)
os.waitpid(child, 0)
torch.set_num_threads(3)
more = bits()
torch.set_num_threads(1)
alone = bits()
same = [x == here for x in (answers[0], more, alone)]
print(json.dumps({"pools": pools, "same": same, "child": os.read(read, 1).decode()}))
"""


def answers(num_threads=2, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(num_threads)],
        env={**clean, "PROTPERF_NUM_THREADS": "", **environment},
        capture_output=True, text=True, check=True, timeout=HANG_S,
    )  # fmt: skip
    return json.loads(done.stdout)


def is_gnu():
    return any(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))


@pytest.mark.skipif(sys.platform != "linux" or not is_gnu(), reason="torch's threads are not those of GNU's OpenMP")
@pytest.mark.skipif(cores_allowed() < 2, reason="one core has no team")
def test_the_thread_that_torch_computes_from_needs_no_pool_and_all_others_one():
    found = answers()
    assert found["pools"] == [0, 2]
    assert found["same"] == [True] * 3
    assert found["child"] == "1", "a forked child has a pool of its own"


@pytest.mark.skipif(cores_allowed() < 2, reason="one core has no pool")
def test_threads_that_do_not_spin_are_left_alone():
    found = answers(OMP_WAIT_POLICY="PASSIVE")
    assert found["pools"] == [2, 2]
    assert found["same"] == [True] * 3
    assert found["child"] == "1"


def test_a_number_that_is_not_that_of_torch_gets_a_pool():
    found = answers(PROTPERF_NUM_THREADS="3")
    assert found["pools"] == [3, 3]
    assert found["same"] == [True] * 3
    assert found["child"] == "1"
