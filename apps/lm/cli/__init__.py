"""The command `protperf`: parse, run, report. One row of COMMANDS is one command; its code is imported when it runs.

A command module has `GROUPS`, the declarations of its options by the titles of its help page, `EXAMPLES`, which end
that page, and `run(given)`, which takes the values that the command line names and returns the exit code. Exit codes:
0 done, 1 bad data, 2 usage, 3 files, 4 resources, 5 records rejected, 128 + N stopped by signal N.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from protperf.lm.cli.commands import (
    COMMANDS,
    COMPLETION_REQUEST,
    EXIT_DATA,
    EXIT_FILES,
    EXIT_RESOURCES,
    EXIT_USAGE,
)
from protperf.lm.cli.common import exit_on_signal, open_closed_streams, say, write_utf8
from protperf.lm.cli.waiting import sleep_when_idle

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
then score, scan, embed and generate, on any machine. Works offline and sends
nothing anywhere.

commands:
{commands}

options:
  --version   show the version
  --help      show this message; protperf COMMAND --help shows the options of a command

first steps:
  protperf train --fasta proteins.fa.gz -o runs/mine
  protperf score runs/mine proteins.fa.gz > scores.tsv
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # `| head` ends us as it ends cat.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sleep_when_idle()
    open_closed_streams()
    write_utf8()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = _complete() if os.environ.get(COMPLETION_REQUEST) else _dispatch(words)
        sys.stdout.flush()
    except OSError as error:
        code = _file_failure(error)
    return code


def _complete() -> int:
    try:
        from protperf.lm.cli.completion import answer

        return answer(os.environ[COMPLETION_REQUEST])
    except (KeyError, ValueError, KeyboardInterrupt):
        # No shell asks like that, or it no longer asks; anything printed would appear in the line being typed.
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
        from protperf.lm.options import closest

        kind = "option" if words[0].startswith("-") else "command"
        hint = closest(words[0], [*COMMANDS, "--help", "--version"]) or f"commands are {', '.join(COMMANDS)}"
        return _fail(f"unknown {kind} {words[0]!r}; {hint}", EXIT_USAGE)
    exit_on_signal()
    return _guarded(words[0], words[1:])


def _guarded(name: str, words: list[str]) -> int:
    """Run a command; every failure is one plain line and its exit code."""
    from protperf import errors
    from protperf.lm.cli.parameters import declared_in, in_flags

    module = import_module(f"protperf.lm.cli.{name}")

    def text(error: Exception) -> str:
        return in_flags(module.GROUPS, error.args[0]) if error.args else str(error)

    def out_of_memory(what: str) -> str:
        # A text that names its remedy knows better, and some commands read one sequence at a time.
        is_small = ";" in what or "batch_tokens" not in declared_in(module.GROUPS)
        return f"out of memory{f': {what}' if what else ''}{'' if is_small else '; try a smaller --batch-tokens'}"

    try:
        return _run(name, module, words)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except MemoryError as error:
        return _fail(out_of_memory(str(error)), EXIT_RESOURCES)
    except (errors.DeviceError, errors.MissingPackageError) as error:
        return _fail(text(error), EXIT_RESOURCES)
    except OSError as error:
        return _file_failure(error, in_flags(module.GROUPS, error.strerror) if error.strerror else None)
    except errors.ConfigError as error:
        return _fail(text(error), EXIT_USAGE)
    except errors.Error as error:
        return _fail(text(error), EXIT_DATA)
    except RuntimeError as error:
        # torch has no exception of its own for this.
        if "allocate memory" not in str(error):
            raise
        return _fail(out_of_memory(""), EXIT_RESOURCES)


def _run(name: str, module: ModuleType, words: list[str]) -> int:
    from protperf.errors import ConfigError
    from protperf.lm.cli.parameters import read_words

    options = words[: words.index("--")] if "--" in words else words
    if "--help" in options or "-h" in options:
        from protperf.lm.cli.help import page

        print(page(name, COMMANDS[name], module.GROUPS, module.EXAMPLES))
        return 0
    try:
        given: dict[str, Any] = read_words(module.GROUPS, words)
    except ConfigError as error:
        from protperf.lm.cli.parameters import in_flags

        return _fail(f"{in_flags(module.GROUPS, error.args[0])} (see protperf {name} --help)", EXIT_USAGE)
    code: int = module.run(given)
    return code


def _file_failure(error: OSError, reason: str | None = None) -> int:
    named = f"{os.fspath(error.filename)!s}: " if error.filename is not None else ""
    if not named and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF):
        named = "standard output: "
    remedy = _REMEDIES.get(error.errno or 0)
    code = _fail(f"{named}{reason or error.strerror or error}{f'; {remedy}' if remedy else ''}", EXIT_FILES)
    _give_up_stdout()
    return code


def _give_up_stdout() -> None:
    """What a full disk left in the buffer of standard output must not fail again when Python ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(message: str, code: int) -> int:
    say(f"error: {message}")
    return code
