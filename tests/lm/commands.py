"""Run the command as a user does: in a process of its own, or in this one where only its answer matters."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

from machine import HANG_S

from protperf.lm.cli import main

COMMAND = [sys.executable, "-m", "protperf.lm.cli"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PROTPERF_NUM_THREADS": "1", **more}


def protperf(*words: object, stdin: bytes | None = None, **options: object) -> subprocess.CompletedProcess[bytes]:
    """The result of `protperf WORDS`, outputs captured as bytes."""
    arguments = {"capture_output": True, "env": environment(), "timeout": HANG_S, **options}
    return subprocess.run([*COMMAND, *map(str, words)], input=stdin, **arguments)  # type: ignore[call-overload]


def in_process(
    *words: object, cwd: Path | str = ".", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """The same without the seconds that a new process takes to load torch; `env` is added to the environment."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    numbers = (signal.SIGPIPE, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    arguments = [str(word) for word in words]
    with (
        mock.patch.dict(os.environ, {"PROTPERF_NUM_THREADS": "1", **(env or {})}),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        try:
            code = main(arguments)
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    out, errors = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(arguments, code, out, errors)


def error_line(result: subprocess.CompletedProcess[bytes]) -> str:
    """The one line that says what went wrong."""
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
