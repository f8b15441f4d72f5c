"""`protperf completion`: the script that completes commands, options and their values in a shell.

The script calls `protperf` at each TAB, by an environment variable, and typer answers from the declarations of the
commands' options. File names are left to the shell.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from importlib import import_module
from typing import Annotated, Any

from protperf.lm.cli.commands import COMMANDS, COMPLETION_REQUEST
from protperf.lm.cli.parameters import completed
from protperf.lm.options import REQUIRED, instance, option, pick

_SHELLS = ("bash", "zsh", "fish")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOptions:
    """What `completion` is asked."""

    shell: str = option(REQUIRED, "bash, zsh or fish.", positional=True, unit="SHELL", choices=_SHELLS)


GROUPS = {"input": pick(CompletionOptions)}
EXAMPLES = """
source <(protperf completion bash)              # in ~/.bashrc
protperf completion zsh > ~/.zfunc/_protperf    # fpath+=~/.zfunc in ~/.zshrc
protperf completion fish > ~/.config/fish/completions/protperf.fish
"""


def run(given: dict[str, Any]) -> int:
    """Print the script of a shell; returns the exit code."""
    shell = instance(CompletionOptions, given).shell
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    print(get_completion_script(prog_name="protperf", complete_var=COMPLETION_REQUEST, shell=shell))
    if shell == "zsh":
        # zsh reads the file at the first TAB, as the body of this function.
        print('\n[[ ${funcstack[1]} = _protperf ]] && _protperf_completion "$@"')
    return 0


def answer(instruction: str) -> int:
    """Print what the words of a command line so far can go on with.

    Args:
        instruction: what the script put into the environment: `complete_bash`, `complete_zsh` or `complete_fish`.
    """
    # typer would load rich to take markup out of our texts, which have none.
    sys.modules["rich"] = None  # type: ignore[assignment]
    import typer
    from typer.completion import completion_init, shell_complete  # type: ignore[attr-defined]

    completion_init()
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    _no_command.__annotations__["version"] = Annotated[bool, typer.Option("--version")]
    app.callback()(_no_command)
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    for name, text in COMMANDS.items():
        # The options of the other commands need not be loaded.
        groups = import_module(f"protperf.lm.cli.{name}").GROUPS if name in line.split() else {}
        app.command(name, help=text)(completed(groups))
    group: Any = typer.main.get_command(app)
    for command in (group, *group.commands.values()):
        for parameter in command.get_params(typer.Context(command)):
            # Nobody asks what a word means; converting it would load pydantic, which takes longer than all else.
            parameter.process_value = lambda context, value: value
    return shell_complete(group, {}, "protperf", COMPLETION_REQUEST, instruction)


def _no_command(version: Any = None) -> None:
    """What `protperf` takes before a command."""
