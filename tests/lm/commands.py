"""Run the installed command as a user does, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "protperf.lm.cli"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PROTPERF_NUM_THREADS": "1", **more}


def protperf(*words: object, stdin: bytes | None = None, **options: object) -> subprocess.CompletedProcess[bytes]:
    """The result of `protperf WORDS`, outputs captured as bytes."""
    arguments = {"capture_output": True, "env": environment(), "timeout": 120, **options}
    return subprocess.run([*COMMAND, *map(str, words)], input=stdin, **arguments)  # type: ignore[call-overload]


def error_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that tells what went wrong."""
    lines = [line for line in result.stderr.decode().splitlines() if line.startswith("protperf: error: ")]
    assert len(lines) == 1, result.stderr.decode()
    assert "Traceback" not in result.stderr.decode()
    return lines[0].removeprefix("protperf: error: ")


def table(data: bytes) -> list[dict[str, str]]:
    """Rows of a TSV table by column."""
    head, *rows = data.decode().splitlines()
    return [dict(zip(head.split("\t"), row.split("\t"), strict=True)) for row in rows]


def write_fasta(path: Path, sequences: dict[str, str]) -> Path:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    return path
