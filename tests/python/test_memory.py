"""No call, however often, makes the process larger: memory, files and threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("repeated_calls.py")
MAX_KB = 512


def repeated(what, times, folder):
    words = [sys.executable, PROGRAM, what, str(times), folder]
    # Unused memory goes back to the system at once: what stays is in use.
    environment = {**os.environ, "PROTPERF_NUM_THREADS": "2", "MALLOC_TRIM_THRESHOLD_": "65536"}
    result = subprocess.run(words, capture_output=True, text=True, timeout=3600, env=environment)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    print(
        f"\n{what}: {found['calls']} calls; {found['start']} kB after the first half, {found['added']:+} kB,"
        f" {found['files']:+} files, {found['threads']:+} threads at the end"
    )
    return found


@pytest.mark.parametrize(
    ("what", "times"),
    [
        ("attention", 4_000),
        ("fasta", 100),
        ("checkpoint", 60),
        ("cancelled", 60),
        *[
            pytest.param(what, times, marks=pytest.mark.soak)
            for what, times in (("attention", 100_000), ("fasta", 1000), ("checkpoint", 1000), ("cancelled", 1000))
        ],
    ],
)
def test_calls_leave_memory_files_and_threads_as_they_were(what, times, tmp_path):
    found = repeated(what, times, tmp_path)
    assert found["added"] < MAX_KB
    assert found["files"] == 0
    assert found["threads"] == 0
