"""A protein of any length is scored in bounded memory: titin's 34,350 residues and more."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import COMMAND, environment, in_process, table, write_fasta
from machine import HANG_S

from protperf import io

MAX_KB = 2 << 20
MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
raise SystemExit(code)
"""


def peak(*words: object) -> tuple[bytes, int, float]:
    """Output, largest resident memory in kB and seconds of a command."""
    start = time.monotonic()
    command = [sys.executable, "-c", MEASURE, *COMMAND, *map(str, words)]
    result = subprocess.run(command, capture_output=True, env=environment(), timeout=HANG_S, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout, int(result.stderr.split()[-1]), time.monotonic() - start


def nano(tmp_path: Path, fasta: Path, attention: str) -> Path:
    words = ["--size", "nano", "--attention", attention, "--steps", 1, "--batch-tokens", 256, "--validate", 0.1, "-q"]
    result = in_process("train", "--fasta", fasta, "-o", tmp_path / attention, *words)
    assert result.returncode == 0, result.stderr
    return tmp_path / attention


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_CHILDREN") or os.name != "posix", reason="needs getrusage")
@pytest.mark.parametrize(
    "attention",
    ["relu", pytest.param("softmax", marks=pytest.mark.soak), pytest.param("exact", marks=pytest.mark.soak)],
)
def test_the_longest_proteins_are_scored_below_2_gb(
    attention: str, fasta: Path, shared_data: Path, tmp_path: Path
) -> None:
    out, kilobytes, seconds = peak(
        "score", "-q", nano(tmp_path, fasta, attention), shared_data / "long" / "long_proteins.fasta.gz"
    )
    rows = table(out)
    assert max(int(row["len"]) for row in rows) == 34_350
    assert all(float(row["ll"]) < 0 and int(row["scored"]) > 0.99 * int(row["len"]) for row in rows)
    total = sum(int(row["len"]) for row in rows)
    print(f"\n{attention}: {len(rows)} proteins, {total} residues, peak {kilobytes / 2**20:.2f} GB, {seconds:.0f} s")
    assert kilobytes < MAX_KB


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_CHILDREN") or os.name != "posix", reason="needs getrusage")
def test_the_longest_proteins_are_embedded_below_2_gb(fasta: Path, shared_data: Path, tmp_path: Path) -> None:
    """Per residue, each of them read in one pass."""
    out, model = tmp_path / "x.npz", nano(tmp_path, fasta, "relu")
    words = ["embed", "-q", model, shared_data / "long" / "long_proteins.fasta.gz", "-o", out, "--per-residue"]
    _, kilobytes, seconds = peak(*words, "--dtype", "f16")
    with np.load(out, allow_pickle=False) as file:
        assert file["length"].max() == 34_350
        assert file["residues"].shape == (file["length"].sum(), 128)
        assert np.isfinite(file["residues"]).all()
    print(f"\npeak {kilobytes / 2**20:.2f} GB, {seconds:.0f} s")
    assert kilobytes < MAX_KB


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_CHILDREN") or os.name != "posix", reason="needs getrusage")
def test_a_region_of_titin_is_scanned_below_2_gb(fasta: Path, shared_data: Path, tmp_path: Path) -> None:
    titin = max(io.scan([shared_data / "long" / "long_proteins.fasta.gz"]), key=len)
    path = write_fasta(tmp_path / "titin.fa", {"titin": titin.sequence})
    out, kilobytes, seconds = peak("scan", "-q", nano(tmp_path, fasta, "relu"), path, "--region", "34349-34350")
    assert [row["pos"] for row in table(out)] == ["34349"] * 19 + ["34350"] * 19
    print(f"\npeak {kilobytes / 2**20:.2f} GB, {seconds:.0f} s")
    assert kilobytes < MAX_KB


@pytest.mark.parametrize("command", ["score", "embed"])
def test_memory_does_not_grow_with_the_length(command: str, fasta: Path, tmp_path: Path) -> None:
    """Left to right; of the states of 40,000 residues, 128 numbers each are held, which are 20 MB."""
    model = nano(tmp_path, fasta, "relu")
    peaks = []
    for length in (10_000, 40_000):
        path = write_fasta(tmp_path / f"{length}.fa", {"p": "ACDEFGHIKLMNPQRSTVWY" * (length // 20)})
        more = ["--mode", "causal", "--pool", "mean,max,attention", "-o", tmp_path / "x.npz"]
        peaks.append(peak(command, "-q", model, path, *(more if command == "embed" else []))[1])
    assert peaks[1] - peaks[0] < 64 << 10
