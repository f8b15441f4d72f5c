"""The number of threads that calls use: our variable, the caller's number, OpenMP's, Slurm's, the cores allowed."""

import subprocess
import sys

import pytest

import protperf
from protperf import threads
from protperf.errors import ConfigError

VARIABLES = ("PROTPERF_NUM_THREADS", "OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")


@pytest.fixture(autouse=True)
def _eight_cores(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cores_allowed", lambda: 8)


@pytest.mark.parametrize(
    ("ours", "openmp", "slurm", "fallback", "needed"),
    [
        (None, None, None, None, 8),
        (None, None, "3", None, 3),
        (None, "5", "3", None, 5),
        (None, "5,2", "3", None, 5),
        (None, " 5 ", None, None, 5),
        ("2", "5", "3", None, 2),
        ("2", "5", "3", 6, 2),
        (None, "5", "3", 6, 6),
        (None, "64", None, None, 8),
        (None, None, "64", None, 8),
        (None, None, None, 64, 8),
        ("64", None, None, None, 64),
        # What OpenMP itself would not understand.
        (None, "0", "3", None, 3),
        (None, "-1", None, None, 8),
        (None, "many", "3", None, 3),
        (None, "\u0665", None, None, 8),
        (None, "", "", None, 8),
    ],
)
def test_the_first_variable_that_is_set_decides(monkeypatch, ours, openmp, slurm, fallback, needed):
    for name, value in zip(VARIABLES, (ours, openmp, slurm), strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert threads.num_threads(fallback) == needed


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "5000", "\u0665x"])
def test_our_own_variable_must_be_a_number_of_threads(monkeypatch, value):
    monkeypatch.setenv("PROTPERF_NUM_THREADS", value)
    with pytest.raises(ConfigError, match="PROTPERF_NUM_THREADS is"):
        threads.num_threads()


def test_build_info_holds_the_number_that_calls_use(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert protperf.build_info()["num_threads"] == 3


def test_openmp_variable_limits_the_pool_of_numpy_calls():
    code = (
        "import os, pathlib, re, time\n"
        "import numpy as np, protperf\n"
        "x = np.ones((1, 16, 300, 64), np.float32)\n"
        "protperf.favor_attention(x, x, x, protperf.draw_projection(64, 64))\n"
        "time.sleep(0.5)\n"
        "names = [(t / 'comm').read_text().strip() for t in pathlib.Path('/proc/self/task').iterdir()]\n"
        "print(sum(bool(re.fullmatch('protperf-[0-9]+', name)) for name in names))\n"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("threads are counted in /proc")
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    # One thread is the calling one's own work; the pool has no worker beyond it.
    assert int(done.stdout) <= 1
