"""The command `protperf`: parse, run, report. One row of COMMANDS is one command; its code is imported when it runs.

Exit codes: 0 done, 1 bad data, 2 usage, 3 files, 4 resources, 5 records rejected, 130 and 143 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

COMMANDS = {
    "train": "Train a model on your own sequences.",
    "score": "Score sequences: log-likelihood and perplexity.",
    "info": "Show what a trained model is.",
    "doctor": "Check this installation and this machine.",
}
EXIT_DATA, EXIT_USAGE, EXIT_FILES, EXIT_RESOURCES, EXIT_REJECTED = 1, 2, 3, 4, 5

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
    words = sys.argv[1:] if arguments is None else arguments
    if not words or words[0] in ("--help", "-h", "help"):
        listed = "\n".join(f"  {name:<9} {text}" for name, text in COMMANDS.items())
        print(_HELP.format(commands=listed), end="")
        return 0
    if words[0] in ("--version", "-V"):
        from protperf import __version__

        print(f"protperf {__version__}")
        return 0
    if words[0] not in COMMANDS:
        return _unknown(words[0])
    return _guarded(words[0], words[1:])


def _unknown(word: str) -> int:
    import difflib

    close = difflib.get_close_matches(word, [*COMMANDS, "--help", "--version"], 1)
    hint = f"did you mean {close[0]}?" if close else f"commands are {', '.join(COMMANDS)}"
    print(
        f"protperf: error: unknown {'option' if word.startswith('-') else 'command'} {word!r}; {hint}", file=sys.stderr
    )
    return EXIT_USAGE


def _guarded(name: str, words: list[str]) -> int:
    """Run a command; every failure is one plain line and its exit code."""
    import typer
    from typer.exceptions import TyperException

    from protperf import errors

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name, help=COMMANDS[name])(import_module(f"protperf.lm.cli.{name}").run)
    command = typer.main.get_command(app)
    try:
        return int(command.main(words, prog_name=f"protperf {name}", standalone_mode=False) or 0)
    except TyperException as error:
        text = error.format_message() if hasattr(error, "format_message") else str(error)
        return _fail(f"{text.rstrip('.')} (see protperf {name} --help)", EXIT_USAGE)
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except MemoryError as error:
        return _fail(f"out of memory: {error}", EXIT_RESOURCES)
    except errors.DeviceError as error:
        return _fail(str(error), EXIT_RESOURCES)
    except OSError as error:
        named = f"{os.fspath(error.filename)}: " if error.filename is not None else ""
        return _fail(f"{named}{error.strerror or error}", EXIT_FILES)
    except errors.ConfigError as error:
        return _fail(str(error), EXIT_USAGE)
    except errors.Error as error:
        return _fail(str(error), EXIT_DATA)


def _fail(message: str, code: int) -> int:
    print(f"protperf: error: {message}", file=sys.stderr)
    return code
