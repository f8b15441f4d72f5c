"""How many threads torch computes with in a command, as the files say that it leaves."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from commands import environment, protperf, write_fasta

NAMES = ("NUM_THREADS", "PER_TASK", "MKL_DYNAMIC")
"""Ends of the names of variables that say how many threads there are."""


def clean(**more: str) -> dict[str, str]:
    """An environment that says nothing of threads but this."""
    return {**{name: value for name, value in environment().items() if not name.endswith(NAMES)}, **more}


def test_threads_that_are_typed_are_those_of_torch_loaded_later(runs: dict[str, Path], tmp_path: Path) -> None:
    """torch asks MKL for their number, whose variable and whose limit of one thread per core must not decide."""
    path, out = write_fasta(tmp_path / "x.fa", {"a": "MKVA"}), tmp_path / "x.tsv"
    words = ["score", runs["both"], path, "-o", out, "--engine", "torch", "-q", "-j", 3]
    result = protperf(*words, env=clean(MKL_NUM_THREADS="1"))
    assert result.returncode == 0, result.stderr.decode()
    assert json.loads((tmp_path / "x.tsv.meta.json").read_text())["threads"] == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="affinity is a notion of Linux")
def test_a_training_takes_no_more_threads_than_it_may_use_cores(fasta: Path, tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    words = ["train", "--fasta", fasta, "-o", tmp_path / "run", "--steps", "1", "--validate", "0.5", "-q"]
    result = protperf(*words, env=clean(OMP_NUM_THREADS="2"), preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    assert result.returncode == 0, result.stderr.decode()
    assert json.loads((tmp_path / "run" / "step-1" / "manifest.json").read_text())["threads"] == 1
