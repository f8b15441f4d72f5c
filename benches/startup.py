"""Time how soon the command answers: help, version and the completion of an option, next to a bare interpreter.

The tests hold these against the interpreter's own start, which depends on the machine as they do; here are the
milliseconds themselves.
"""

import os
import subprocess
import sys
from collections.abc import Callable

import report

COMMAND = [sys.executable, "-m", "protperf.lm.cli"]
COMPLETION = {"COMP_WORDS": "protperf train --att", "COMP_CWORD": "2", "_PROTPERF_COMPLETE": "complete_bash"}
CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "bare interpreter": ([sys.executable, "-c", "pass"], {}),
    "protperf --version": ([*COMMAND, "--version"], {}),
    "protperf --help": ([*COMMAND, "--help"], {}),
    "protperf train --help": ([*COMMAND, "train", "--help"], {}),
    "protperf train --att TAB": (COMMAND, COMPLETION),
}


def starter(command: list[str], more: dict[str, str]) -> Callable[[], object]:
    """A callable that runs a command and fails where the command does."""
    environment = {**os.environ, **more}
    return lambda: subprocess.run(command, env=environment, capture_output=True, check=True)


def main() -> None:
    """Measure and print."""
    times = report.interleave({name: starter(*case) for name, case in CASES.items()}, seconds=4.0, max_turns=30)
    print(f"{report.describe_machine()}, Python {sys.version.split()[0]}; ms, best–median\n")
    print(report.markdown(["start of", "ms"], [[name, str(timing)] for name, timing in times.items()]))


if __name__ == "__main__":
    main()
