"""Completion as a shell asks for it: bash and fish for real where they are, zsh by what the script answers it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import machine
import pytest
from commands import COMMAND, environment, error_line, in_process, protperf

from protperf.lm.cli.commands import COMMANDS
from protperf.lm.cli.parameters import declared_in
from protperf.lm.scoring.options import METHODS
from protperf.lm.tables.options import FORMATS

ASKS = [
    ("protperf ", set(COMMANDS)),
    ("protperf sc", {"score", "scan"}),
    ("protperf --", {"--version", "--help"}),
    ("protperf score --meth", {"--method"}),
    ("protperf score --method ", set(METHODS)),
    ("protperf score run x.fa --format p", {"parquet"}),
    ("protperf train --size ", {"nano", "tiny", "small", "base"}),
    ("protperf train --size nano --att", {"--attention", "--attention-backend"}),
    ("protperf doctor --", {"--json", "--model", "--help"}),
    ("protperf completion ", {"bash", "zsh", "fish"}),
]
FILES = ["protperf score ", "protperf score run ", "protperf score -o ", "protperf train --fasta ", "protperf info "]


def asked(shell: str, line: str) -> dict[str, str]:
    """The environment in which a shell calls the command for its answer."""
    words = line.split(" ")
    message = {"bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}}
    also = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    return environment(**message.get(shell, also), _PROTPERF_COMPLETE=f"complete_{shell}")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH on which `protperf` is this interpreter's."""
    script = tmp_path / "bin" / "protperf"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m protperf.lm.cli "$@"\n')
    script.chmod(0o755)
    return f"{script.parent}:{environment()['PATH']}"


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash_completes_commands_options_and_values_and_leaves_files_to_itself(path: str) -> None:
    program = "source <(protperf completion bash)\n"
    for line in [line for line, _ in ASKS] + FILES:
        words = " ".join(f"'{word}'" for word in line.split(" "))
        program += f"COMP_WORDS=({words}); COMP_CWORD={line.count(' ')}; COMPREPLY=(); _protperf_completion protperf\n"
        program += 'echo "${COMPREPLY[*]}"\n'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=environment(PATH=path))
    assert (done.returncode, done.stderr) == (0, "")
    answers = done.stdout.splitlines()
    assert [set(answer.split()) for answer in answers] == [*(expected for _, expected in ASKS), *(set() for _ in FILES)]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish_completes_the_same(path: str, tmp_path: Path) -> None:
    program = "source (protperf completion fish | psub)\n"
    program += "".join(f"echo (string split -f 1 \\t -- (complete -C '{line}'))\n" for line, _ in ASKS)
    env = environment(PATH=path, HOME=str(tmp_path), XDG_CONFIG_HOME=str(tmp_path), XDG_DATA_HOME=str(tmp_path))
    done = subprocess.run(["fish", "-N", "-c", program], capture_output=True, text=True, env=env)
    assert [set(answer.split()) for answer in done.stdout.splitlines()] == [expected for _, expected in ASKS], done


@pytest.mark.parametrize(("line", "expected"), ASKS)
def test_zsh_is_offered_the_same(line: str, expected: set[str]) -> None:
    done = in_process(env=asked("zsh", line))
    assert (done.returncode, done.stderr) == (0, b"")
    for word in expected:
        assert f'"{word}"' in done.stdout.decode()
    assert done.stdout.decode().count("\n") == len(expected)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh_completes_at_the_first_tab(path: str, tmp_path: Path) -> None:
    """The script is the body of a function that is read when it is first called, and must answer in that call."""
    (tmp_path / "fpath").mkdir()
    env = environment(PATH=path, HOME=str(tmp_path))
    done = subprocess.run(["protperf", "completion", "zsh"], capture_output=True, env=env)
    (tmp_path / "fpath" / "_protperf").write_bytes(done.stdout)
    program = (
        f"fpath=({tmp_path}/fpath $fpath); autoload -Uz compinit; compinit -u -D; "
        "_arguments() { print -r -- $@ }; words=(protperf sc); CURRENT=2; _protperf"
    )
    message = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, env=env)
    assert "score" in message.stdout, message


def test_zsh_learns_where_files_are_meant() -> None:
    assert protperf(env=asked("zsh", "protperf score run ")).stdout.strip() == b"_files"


QUICK = 3.0
"""How many times as long as the library of the command line takes to load an answer takes; 1.7, over 10 with torch."""
LIBRARY = "import typer"


def test_the_answer_takes_little_more_than_the_library_that_parses_the_line() -> None:
    ask = asked("bash", "protperf train --time 5m --att")
    assert machine.times_the_cost(lambda: machine.cpu_s(COMMAND, env=ask), machine.start_of(LIBRARY)) < QUICK


def test_an_answer_that_loads_torch_is_seen_not_to_be_quick() -> None:
    slow = "import torch, sys; from protperf.lm.cli import main; sys.exit(main(['train', '--help']))"
    assert machine.start_of(slow)() > QUICK * machine.start_of(LIBRARY)()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_an_answer_imports_neither_torch_nor_numpy(shell: str) -> None:
    code = (
        "import atexit, sys\n"
        "loaded = lambda: sys.stderr.write(str({'torch', 'numpy', 'Bio'} & set(sys.modules)))\n"
        "atexit.register(loaded)\n"
        "from protperf.lm.cli import main\n"
        "sys.exit(main([]))"
    )
    ask = asked(shell, "protperf train --time 5m --att")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ask)
    assert (done.returncode, done.stderr) == (0, "set()")
    assert "--attention" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_a_command_is_completed(name: str) -> None:
    groups = import_module(f"protperf.lm.cli.{name}").GROUPS
    flags = {flag for each in declared_in(groups).values() for flag in each.flags}
    assert set(in_process(env=asked("bash", f"protperf {name} -")).stdout.decode().split()) == flags | {"--help"}


def test_a_shell_that_is_not_known_is_refused() -> None:
    result = in_process("completion", "csh")
    assert result.returncode == 2
    assert "bash, zsh, fish" in error_line(result)


def test_formats_are_all_offered() -> None:
    answer = in_process(env=asked("bash", "protperf score --format "))
    assert answer.stdout.decode().split() == list(FORMATS)


@pytest.mark.parametrize("odd", [{}, {"COMP_WORDS": "protperf s"}, {"COMP_WORDS": "protperf s", "COMP_CWORD": "x"}])
def test_a_question_that_no_shell_asks_gets_no_answer_and_no_traceback(odd: dict[str, str]) -> None:
    done = protperf("--version", env=environment(**odd, _PROTPERF_COMPLETE="complete_bash"))
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_an_empty_question_is_none() -> None:
    assert protperf("--version", env=environment(_PROTPERF_COMPLETE="")).stdout.startswith(b"protperf ")
