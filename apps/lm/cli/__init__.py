"""The command `protperf`: parse, run, report. One row of COMMANDS is one command; its code is imported when it runs.

A command module has `run`, whose signature typer reads, with `GROUPS` and `EXAMPLES` for its help page, or
`main(words)`, which parses for itself: importing typer takes longer than `info` may. Exit codes: 0 done, 1 bad data,
2 usage, 3 files, 4 resources, 5 records rejected, 130 and 143 interrupted.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from protperf.lm.cli.common import end_at_once, open_closed_streams, tell

COMMANDS = {
    "train": "Train a model on your own sequences.",
    "score": "Score sequences: log-likelihood and perplexity.",
    "info": "Show what a trained model is.",
    "doctor": "Check this installation and this machine.",
    "completion": "Print a script that completes commands in your shell.",
}
ASKED = "_PROTPERF_COMPLETE"
"""Set by the shell where it asks how a command line may go on."""
EXIT_DATA, EXIT_USAGE, EXIT_FILES, EXIT_RESOURCES, EXIT_REJECTED = 1, 2, 3, 4, 5

_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check its permissions",
    errno.EISDIR: "name a file in it",
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space and run again",
}

_HELP = """\
usage: protperf COMMAND [OPTIONS]

Protein language models with linear-time attention: train on your own sequences,
score, on any machine. Works offline and sends nothing anywhere.

commands:
{commands}

options:
  --version   show the version
  --help      show this message; protperf COMMAND --help shows a command's own

first steps:
  protperf train --fasta proteins.fa.gz -o runs/mine --size nano --time 5m
  protperf score runs/mine proteins.fa.gz > scores.tsv
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # `| head` ends us as it ends cat.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # Set before torch loads: its idle workers would otherwise spin on the cores that our own pool works on.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    open_closed_streams()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = _completed() if os.environ.get(ASKED) else _dispatch(words)
        sys.stdout.flush()
    except OSError as error:
        return _file_failure(error)
    return code


def _completed() -> int:
    try:
        from protperf.lm.cli.completion import answer

        return answer(os.environ[ASKED])
    except (KeyError, ValueError, KeyboardInterrupt):
        # No shell asks like that, or it asks no more; whatever is printed would stand in the line being typed.
        return 1


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("--help", "-h"):
        listed = "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())
        print(_HELP.format(commands=listed), end="")
        return 0
    if words[0] in ("--version", "-V"):
        from protperf import __version__

        print(f"protperf {__version__}")
        return 0
    if words[0] not in COMMANDS:
        kind = "option" if words[0].startswith("-") else "command"
        hint = _closest(words[0], [*COMMANDS, "--help", "--version"]) or f"commands are {', '.join(COMMANDS)}"
        return _fail(f"unknown {kind} {words[0]!r}; {hint}", EXIT_USAGE)
    end_at_once()
    return _guarded(words[0], words[1:])


def _guarded(name: str, words: list[str]) -> int:
    """Run a command; every failure is one plain line and its exit code."""
    from protperf import errors

    try:
        return _runner(name, import_module(f"protperf.lm.cli.{name}"))(words)
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    except MemoryError as error:
        return _fail(f"out of memory{f': {error}' if str(error) else ''}; try a smaller --batch-tokens", EXIT_RESOURCES)
    except (errors.DeviceError, errors.MissingPackageError) as error:
        return _fail(str(error), EXIT_RESOURCES)
    except OSError as error:
        return _file_failure(error)
    except errors.ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except errors.Error as error:
        return _fail(str(error), EXIT_DATA)
    except RuntimeError as error:
        # torch has no exception of its own for this.
        if "allocate memory" not in str(error):
            raise
        return _fail("out of memory; try a smaller --batch-tokens", EXIT_RESOURCES)


def _runner(name: str, module: ModuleType) -> Callable[[list[str]], int]:
    if hasattr(module, "main"):
        return module.main
    return lambda words: _run_typer(name, module, words)


def _run_typer(name: str, module: ModuleType, words: list[str]) -> int:
    import typer
    from typer.exceptions import TyperException

    from protperf.errors import ConfigError
    from protperf.lm.cli.help import page

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    spelt = {"help_option_names": ["-h", "--help"]}
    app.command(name, help=COMMANDS[name], context_settings=spelt)(module.run)
    command: Any = typer.main.get_command(app)
    command.get_help = lambda _: page(command, name, module.GROUPS, module.EXAMPLES)
    try:
        # Not `main`, which would take an interruption for an ordinary end.
        with command.make_context(f"protperf {name}", list(words)) as context:
            return int(command.invoke(context) or 0)
    except ConfigError as error:
        raise ConfigError(_with_options(str(error), command)) from error
    except TyperException as error:
        return _fail(f"{_usage(error, command)} (see protperf {name} --help)", EXIT_USAGE)
    except typer.Exit as error:
        return error.exit_code


def _usage(error: Exception, command: Any) -> str:
    word = getattr(error, "option_name", None)
    if word is not None and type(error).__name__ == "NoSuchOption":
        known = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
        hint = _closest(word, known)
        return f"unknown option {word}{f'; {hint}' if hint else ''}"
    text = str(error.format_message() if hasattr(error, "format_message") else error).rstrip(".")
    spelt = getattr(getattr(error, "param", None), "opts", None)
    for kind, wanted in (("integer", "a whole number"), ("number", "a number")):
        if spelt and f"Input should be a valid {kind}" in text:
            return f"{spelt[-1]} must be {wanted}"
    return text[:1].lower() + text[1:]


def _with_options(text: str, command: Any) -> str:
    """An error of the Python interface in the words of the command line: `--batch-tokens` for `batch_tokens`."""
    for parameter in command.params:
        if "_" in parameter.name:
            text = re.sub(rf"(?<![\w./'-]){parameter.name}(?![\w./'-])", parameter.opts[-1], text)
    return text


def _closest(word: str, known: list[str]) -> str | None:
    import difflib

    close = difflib.get_close_matches(word, known, 1)
    return f"did you mean {close[0]}?" if close else None


def _file_failure(error: OSError) -> int:
    named = f"{os.fspath(error.filename)!s}: " if error.filename is not None else ""
    if not named and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF):
        named = "standard output: "
    remedy = _REMEDIES.get(error.errno or 0)
    code = _fail(f"{named}{error.strerror or error}{f'; {remedy}' if remedy else ''}", EXIT_FILES)
    _give_up_stdout()
    return code


def _give_up_stdout() -> None:
    """Whatever a full disk left in the buffer of standard output must not fail again when Python ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(message: str, code: int) -> int:
    tell(f"error: {message}")
    return code
