"""Many Python threads at once compute what one does; and the pool is never larger than asked."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from machine import HANG_S, wait_until

import protperf
from protperf.torch import favor_attention

HERE = Path(__file__).parent
TASKS = Path("/proc/self/task")


def call_together(tmp_path, num_threads, rounds, timeout=HANG_S):
    environment = os.environ | {"PROTPERF_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "error", HERE / "threaded_calls.py", str(num_threads), str(rounds), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]


def test_64_threads_of_mixed_calls_equal_one(tmp_path):
    call_together(tmp_path, 64, 8)


@pytest.mark.soak
def test_64_threads_of_200_mixed_calls_each_equal_one(tmp_path):
    call_together(tmp_path, 64, 200, 3600)


@pytest.fixture
def call():
    """A call with work for every worker of a pool of eight."""
    x = np.ones((1, 16, 300, 64), np.float32)
    omega = protperf.draw_projection(64, 64)
    return lambda: protperf.favor_attention(x, x, x, omega)


def workers():
    """Threads of the pool by name; those of a replaced pool may take a moment to end."""
    names = []
    for task in TASKS.iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:
            continue
    # "protperf-call" is the thread of one call, which waits while the pool works.
    return sorted(name for name in names if re.fullmatch("protperf-[0-9]+", name))


def settled(needed):
    wait_until(lambda: workers() == needed, patience_s=60)
    return workers()


linux = pytest.mark.skipif(not TASKS.is_dir(), reason="threads are counted in /proc")


@linux
def test_the_pool_has_the_threads_that_were_asked_for_last(monkeypatch, call):
    for number in (8, 3, 5, 2, 8, 2):
        monkeypatch.setenv("PROTPERF_NUM_THREADS", str(number))
        call()
        assert settled([f"protperf-{i}" for i in range(number)]) == [f"protperf-{i}" for i in range(number)]


COUNT = """
import os, pathlib, re, time
{before}
import numpy as np, protperf
x = np.ones((1, 16, 300, 64), np.float32)
{call}
said = protperf.build_info()["num_threads"]
def named():
    names = [(task / "comm").read_text().strip() for task in pathlib.Path("/proc/self/task").iterdir()]
    return sum(bool(re.fullmatch("protperf-[0-9]+", name)) for name in names)
# A thread of the pool that had nothing to do may not have taken its name yet; half a second shows one too many.
end = time.monotonic() + 60
while named() < {waited} and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.5)
print(named(), said)
"""
NUMPY = "protperf.favor_attention(x, x, x, protperf.draw_projection(64, 64))"


def count(call=NUMPY, before="", command=(), waited="(said if said > 1 else 0)", **environment):
    """Threads of the pool after a call in a process of its own, and the number that it says it uses."""
    kept = {name: value for name, value in os.environ.items() if name != "PROTPERF_NUM_THREADS"}
    code = COUNT.format(before=before, call=call, waited=waited)
    done = subprocess.run(
        [*command, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=kept | environment,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(map(int, done.stdout.split()))


@linux
def test_the_pool_is_no_larger_than_the_environment_says():
    assert count(PROTPERF_NUM_THREADS="1") == (0, 1)
    assert count(PROTPERF_NUM_THREADS="5") == (5, 5)


@linux
def test_the_pool_is_no_larger_than_the_cores_allowed():
    core = min(os.sched_getaffinity(0))
    assert count(before=f"os.sched_setaffinity(0, {{{core}}})") == (0, 1)
    cores = len(os.sched_getaffinity(0))
    pool, said = count()
    assert pool == (said if said > 1 else 0)
    assert said <= cores


@linux
def test_the_pool_is_no_larger_than_torch_says():
    call = (
        "import torch; from protperf.torch import favor_attention; torch.set_num_threads({}); x = torch.from_numpy(x)\n"
        "favor_attention(x, x, x, torch.from_numpy(protperf.draw_projection(64, 64)))"
    )
    _, allowed = count()
    assert count(call.format(1), waited="0")[0] == 0
    many = count(call.format(64))[0]
    assert many == (allowed if allowed > 1 else 0)


def write_quota(root):
    """The files of this process's control group, either version, with a quota of one core, below `root`.

    A group of its own would need rights over the system's; what the files say does not.
    """
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for name in {"cpu", controllers} if controllers else {""}:
            folder = root / name / group.strip("/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cgroup.controllers").write_text("cpu\n")
            (folder / "cpu.max").write_text("100000 100000\n")
            (folder / "cpu.cfs_quota_us").write_text("100000\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")


@linux
def test_the_pool_is_no_larger_than_the_quota_of_the_control_group(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: a quota cannot lower it")
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare: a quota cannot be made up for one process")
    write_quota(tmp_path)
    script = f'mount --bind {tmp_path} /sys/fs/cgroup && exec "$@"'
    enter = [unshare, "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to a mount namespace")
    assert count(command=enter) == (0, 1)


@linux
def test_threads_of_many_callers_share_one_pool(monkeypatch):
    monkeypatch.setenv("PROTPERF_NUM_THREADS", "2")
    x = torch.ones(1, 16, 300, 64)
    omega = torch.from_numpy(protperf.draw_projection(64, 64))
    with ThreadPoolExecutor(8) as callers:
        list(callers.map(lambda _: favor_attention(x, x, x, omega), range(64)))
    assert settled(["protperf-0", "protperf-1"]) == ["protperf-0", "protperf-1"]
