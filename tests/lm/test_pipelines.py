"""The pipelines do what they say: their commands, run as a scheduler runs them, leave the table of one job."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, in_process

PIPELINES = Path(__file__).resolve().parents[2] / "examples" / "pipelines"
SHARDS = 2


@pytest.fixture
def work(tmp_path: Path, runs: dict[str, Path], fasta: Path) -> Path:
    """A directory with a model, sequences and the table that one job makes, and `protperf` for its programs."""
    (tmp_path / "model").symlink_to(runs["both"])
    script = tmp_path / "bin" / "protperf"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m protperf.lm.cli "$@"\n')
    script.chmod(0o755)
    assert in_process("score", tmp_path / "model", fasta, "-q", "-o", tmp_path / "whole.tsv").returncode == 0
    return tmp_path


def same_scores(work: Path) -> bool:
    """Whether the joined table has the rows of the whole one; a packing of its own changes the last digits."""
    tables = [(work / name).read_text().splitlines() for name in ("scores.tsv", "whole.tsv")]
    assert len(tables[0]) == len(tables[1]) == 41
    for ours, theirs in zip(*tables, strict=True):
        a, b = ours.split("\t"), theirs.split("\t")
        assert (a[:4], a[7:]) == (b[:4], b[7:])
        assert a[0] == "n" or [float(x) for x in a[4:7]] == pytest.approx([float(x) for x in b[4:7]], rel=1e-5)
    return True


def test_the_slurm_array_leaves_the_whole_table(work: Path) -> None:
    path = f"{work / 'bin'}:{environment()['PATH']}"
    for task in range(1, SHARDS + 1):
        given = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(SHARDS), "PATH": path}
        words = ["bash", str(PIPELINES / "score.slurm"), "model", "proteins.fasta"]
        for _ in range(2):
            # A task that is requeued after it was done changes nothing.
            subprocess.run(words, cwd=work, env=environment(**given), check=True, capture_output=True)
    text = (PIPELINES / "score.slurm").read_text()
    (command,) = re.findall(r"--wrap '(.*)'", text)
    subprocess.run(["bash", "-c", command], cwd=work, env=environment(PATH=path), check=True, capture_output=True)
    assert same_scores(work)


@pytest.mark.parametrize("name", ["Snakefile", "score.nf"])
def test_the_commands_of_a_workflow_leave_the_whole_table(name: str, work: Path) -> None:
    score, merge = re.findall(r"(protperf (?:score|merge) [^\"\n]*)", (PIPELINES / name).read_text())
    (work / "shards").mkdir()
    tables = [f"shards/{i}.tsv" for i in range(1, SHARDS + 1)]
    for i, table in enumerate(tables, 1):
        filled = filled_in(score, i, table, "")
        assert in_process(*filled.split()[1:], cwd=work).returncode == 0, filled
    filled = filled_in(merge, 0, "scores.tsv", " ".join(tables))
    assert in_process(*filled.split()[1:], cwd=work).returncode == 0, filled
    assert same_scores(work)


def filled_in(command: str, i: int, out: str, tables: str) -> str:
    """A command as the workflow engine fills it in."""
    values = {
        "{MODEL}": "model", "{input.tables}": tables, "{input}": "proteins.fasta", "{wildcards.i}": str(i),
        "{SHARDS}": str(SHARDS), "{threads}": "1", "{output.table}": out, "{output}": out,
        "${model}": "model", "${fasta}": "proteins.fasta", "${params.shards}": str(SHARDS), "${task.cpus}": "1",
        "${i}.tsv": out, "${i}": str(i), "${shards.findAll { it.name.endsWith('.tsv') }.join(' ')}": tables,
    }  # fmt: skip
    for name in sorted(values, key=lambda name: (not name.startswith("$"), -len(name))):
        command = command.replace(name, values[name])
    assert "{" not in command
    return command


@pytest.mark.skipif(shutil.which("snakemake") is None, reason="Snakemake is not installed")
def test_snakemake_leaves_the_whole_table(work: Path) -> None:
    words = ["snakemake", "--cores", "1", "--snakefile", str(PIPELINES / "Snakefile"), "--config"]
    words += ["model=model", "fasta=proteins.fasta", f"shards={SHARDS}"]
    path = f"{work / 'bin'}:{environment()['PATH']}"
    subprocess.run(words, cwd=work, env=environment(PATH=path), check=True, capture_output=True)
    assert same_scores(work)
