"""A large allocation that fails is a MemoryError, whichever it is; never an abort, and never a wrong result."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from machine import HANG_S

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the failing allocator stands before glibc's")


@pytest.fixture(scope="module")
def allocator(tmp_path_factory):
    """A library to preload, whose n-th large allocation fails."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("allocator") / "failing_malloc.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "failing_malloc.c"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        pytest.skip(f"cc cannot build the allocator: {built.stderr.splitlines()[-1]}")
    return library


def cases(allocator, face, threads, *options):
    environment = os.environ | {"LD_PRELOAD": str(allocator), "PROTPERF_NUM_THREADS": str(threads)}
    command = [sys.executable, "-W", "error", HERE / "failing_allocations.py", face, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG_S, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(allocator, face, threads, *options):
    found = cases(allocator, face, threads, *options)
    assert {case["case"]: case["wrong"] for case in found if case["wrong"]} == {}
    # A shim that fails nothing would prove nothing.
    assert all(min(case["failed"]) > 0 for case in found)
    total = sum(sum(case["failed"]) for case in found)
    print(f"{face}, {threads} threads: {len(found)} cases, {total} allocations failed, 0 aborts")


@pytest.mark.parametrize("face", ["numpy", "torch"])
def test_every_large_allocation_that_fails_is_a_memory_error(allocator, face):
    check(allocator, face, 2)


@pytest.mark.soak
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("face", ["numpy", "torch"])
def test_a_large_allocation_that_fails_with_all_later_is_a_memory_error(allocator, face, threads):
    check(allocator, face, threads, "--all-later")


LIMITED = """
import re, resource, sys
import numpy as np, protperf
{imports}
x = {ones}
needed = attention(x, x, x, omega)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), resource.RLIM_INFINITY))
try:
    attention({wide})
except MemoryError as error:
    assert isinstance(error, protperf.Error) and re.search("[0-9]{{3}}", str(error)), error
else:
    sys.exit("512 MiB were found within 256")
assert (attention(x, x, x, omega) == needed).all()
"""
FACES = {
    "numpy": {
        "imports": "attention, omega = protperf.favor_attention, protperf.draw_projection(64, 64)",
        "ones": "np.ones((1, 4, 300, 64), np.float32)",
        "wide": "*[np.broadcast_to(np.float32(1), (1, 1, 2**21, 64))] * 3, omega",
    },
    "torch": {
        "imports": "import torch; from protperf.torch import favor_attention as attention; torch.set_num_threads(1)\n"
        "omega = torch.from_numpy(protperf.draw_projection(64, 64))",
        "ones": "torch.ones(1, 4, 300, 64)",
        "wide": "*[torch.ones(()).expand(1, 1, 2**21, 64)] * 3, omega",
    },
}


@pytest.mark.parametrize("face", FACES)
def test_an_output_past_the_limit_of_the_process_is_a_memory_error_that_names_bytes(face):
    code = LIMITED.format(**FACES[face])
    environment = os.environ | {"PROTPERF_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
