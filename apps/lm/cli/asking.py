"""What commands share that ask models: a model that is checked early and loaded late, and what is said at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from protperf.lm.cli import common, working
from protperf.lm.cli.parameters import Groups
from protperf.lm.options import REQUIRED, check, option, pick
from protperf.lm.shared_options import LoadOptions, ReadingOptions, RejectOptions, model_option

if TYPE_CHECKING:
    from protperf.lm.loading import LoadedModel


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequencesCommand:
    """What a command takes that asks a model about sequences: which model, and which sequences."""

    model: Path = model_option()
    fasta: tuple[str, ...] = option(
        REQUIRED,
        "FASTA, or tables with --seq-col; plain or gz, xz, zst, bz2; - is standard input.",
        positional=True,
        unit="FASTA...",
    )

    def __post_init__(self) -> None:
        check(self)


INPUT = [
    *pick(SequencesCommand, "model", "fasta"),
    *pick(ReadingOptions),
    *pick(working.ExitOptions),
    *pick(RejectOptions),
]
"""Options of a command that asks a model about sequences."""
COMPUTATION = [*pick(working.ThreadOptions), *pick(LoadOptions)]
"""Options of how a command asks models."""


def check_models(paths: Iterable[Path]) -> None:
    """Report a model that is not there before anything is read.

    Raises:
        MissingFileError: there is no such directory.
    """
    from protperf.lm.storage import checkpoint

    for path in paths:
        if not path.is_dir():
            checkpoint.find(path)


def load_models(
    groups: Groups, paths: Iterable[Path], load: LoadOptions, threads: int | None, messages: common.MessageOptions
) -> list[LoadedModel]:
    """Load models, which may need torch: to be called once the mistakes that can be seen without it are reported."""
    from protperf.lm.loading import load_run
    from protperf.lm.storage import builtin

    num_threads = working.set_threads(threads)
    loaded = [load_run(path, load.dtype, load.device, load.engine) for path in paths]
    shipped = [each.step.name for each in loaded if each.step.name.startswith(builtin.PREFIX)]
    text = "note: {name} is what a training starts with, and has learnt too little to be trusted by itself"
    notes = [text.format(name=name) for name in shipped]
    common.say_all(groups, [] if messages.quiet else notes)
    common.say_all(groups, [common.environment(num_threads, load.dtype, load.device)] if messages.verbose else [])
    return loaded


class Summary(Protocol):
    """What came of a job: what was read, in words, what deserves attention, and figures that are always said."""

    @property
    def warnings(self) -> tuple[str, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def facts(self) -> list[str]: ...
    def figures(self) -> list[str]: ...


def conclude(groups: Groups, messages: common.MessageOptions, summary: Summary, started: float) -> None:
    """Say what came of a job."""
    facts = [*summary.facts(), f"took {common.spent(started)}"]
    common.say_all(groups, facts if messages.verbose else [])
    common.say_all(groups, () if messages.quiet else summary.notes, "note: ")
    common.say_all(groups, summary.warnings, "warning: ")
    common.say_all(groups, summary.figures())
