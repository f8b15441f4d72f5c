"""`protperf completion`: the script that completes commands, options and their values in a shell.

The script asks `protperf` again at each TAB, by an environment variable, and is answered by typer from the commands'
signatures. File names are left to the shell.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from protperf.errors import ConfigError
from protperf.lm.cli import ASKED, COMMANDS
from protperf.lm.cli.common import one_of

_SHELLS = ("bash", "zsh", "fish")

_HELP = """\
usage: protperf completion SHELL

Print a script that completes commands, options and their values in your shell.

input:
  SHELL                   bash, zsh or fish

  -h, --help              Show this message

examples:
  source <(protperf completion bash)              # in ~/.bashrc
  protperf completion zsh > ~/.zfunc/_protperf    # fpath+=~/.zfunc in ~/.zshrc
  protperf completion fish > ~/.config/fish/completions/protperf.fish
"""


def main(words: list[str]) -> int:
    """Print the script of a shell; returns the exit code."""
    if words and words[0] in ("-h", "--help"):
        print(_HELP, end="")
        return 0
    if len(words) != 1 or words[0] not in _SHELLS:
        raise ConfigError(f"name one shell, {', '.join(_SHELLS)} (see protperf completion --help)")
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    print(get_completion_script(prog_name="protperf", complete_var=ASKED, shell=words[0]))
    if words[0] == "zsh":
        # zsh reads the file at the first TAB, as the body of this function.
        print('\n[[ ${funcstack[1]} = _protperf ]] && _protperf_completion "$@"')
    return 0


def answer(instruction: str) -> int:
    """Print what the words of a command line so far can go on with.

    Args:
        instruction: what the script put into the environment: `complete_bash`, `complete_zsh` or `complete_fish`.
    """
    # typer would load it to take markup out of our texts, which have none.
    sys.modules["rich"] = None  # type: ignore[assignment]
    from typer.completion import completion_init, shell_complete  # type: ignore[attr-defined]

    completion_init()
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.callback()(_protperf)
    for name, text in COMMANDS.items():
        app.command(name, help=text)(_signature(name))
    group: Any = typer.main.get_command(app)
    for command in (group, *group.commands.values()):
        for parameter in command.get_params(typer.Context(command)):
            # Nobody asks what a word means; telling would load pydantic, which takes longer than all else.
            parameter.process_value = lambda context, value: value
    return shell_complete(group, {}, "protperf", ASKED, instruction)


def _signature(name: str) -> Callable[..., Any]:
    """The function whose parameters are those of a command."""
    if name == "info":
        return _info
    if name == "completion":
        return _completion
    return import_module(f"protperf.lm.cli.{name}").run


def _protperf(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """What `protperf` takes before a command."""


def _info(
    model: Annotated[Path, typer.Argument(help="Run directory, or one step of it.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What `protperf info` takes, which parses for itself."""


def _completion(shell: Annotated[str, typer.Argument(autocompletion=one_of(_SHELLS))]) -> None:
    """What this command takes."""
