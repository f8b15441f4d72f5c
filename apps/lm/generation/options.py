"""What a generation can be asked for. Imports nothing heavy: a command refuses a wrong word before it loads a model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.errors import ConfigError
from protperf.lm.options import check, option
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.model.config import ModelConfig

ORDERS = ("random", "certain")
BLANK = "_"
"""A position of a template that is to be filled."""
SWEEPS = 4
"""Times that each free position is drawn again unless another number is asked for."""


def parse_positions(text: str) -> list[tuple[int, int]]:
    """First and last position, counted from 1, of each range of text such as `1-30,55`.

    Raises:
        ConfigError: anything else.
    """
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"([1-9]\d{0,8})(?:-([1-9]\d{0,8}))?", part.strip())
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            template = "{name}: {part!r} is not a position or a range; write 1-30,55, counted from 1"
            raise ConfigError(Message(template, name=Argument("fix_positions"), part=part))
        found.append((int(match[1]), int(match[2] or match[1])))
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """How many sequences, how they start, how freely each residue is drawn, and what is refused."""

    number: int = option(
        1, "Sequences to draw, for each prompt.", argument="n", flag="--num", short="-n", least=1, most=10**9
    )
    start: int = option(
        0, "Number of the first sequence: each is a function of the seed and its number.", least=0, most=2**62
    )
    seed: int = option(42, "Seed of the draws.", least=0, most=2**63 - 1)
    prompt: str | None = option(None, "Residues that each sequence starts with.", unit="SEQ")
    prompts: Path | None = option(None, "Sequence file with one prompt per record.", unit="FASTA")
    temperature: float = option(
        1.0, "Log-probabilities are divided by this; 0 takes the most probable residue.", least=0.0, most=1e6
    )
    top_k: int | None = option(None, "Draw among the K most probable.", unit="K", least=1, most=1000)
    top_p: float = option(
        1.0, "Draw among the fewest that together have this probability; after --top-k.", least=1e-9, most=1.0
    )
    min_len: int = option(1, "Fewest residues of a sequence, its prompt counted.", least=1, most=2**40)
    max_len: int = option(1024, "Most residues of a sequence, its prompt counted.", least=1, most=2**40)
    max_repeat: int = option(
        8, "No unit of 1 to 4 residues is drawn more than so many times in a row; 0 allows it.", least=0, most=2**40
    )
    exclude: Path | None = option(
        None,
        "Sequence file, such as the training set: its sequences are drawn again, and the nearest of them is named.",
        unit="FASTA",
    )
    template: str | None = option(
        None, f"Sequence to change, or its file, with {BLANK} for what is to be filled.", unit="SEQ"
    )
    infill: bool = option(False, f"Fill the {BLANK} of the template; needs a model trained with masks.")
    fix_positions: str | None = option(
        None,
        "Keep these positions of the template, such as 1-30,55, and draw all others again, given each other; needs a "
        "model trained with masks.",
        unit="RANGES",
        judge=parse_positions,
    )
    order: str = option(
        "random", "Which blanks are filled first: random, or those that the model is certain of.", choices=ORDERS
    )
    steps: int | None = option(
        None,
        "Passes in which blanks are filled, or sweeps over the positions that are drawn again.",
        least=1,
        most=10**6,
        shown_default=f"one blank per pass; {SWEEPS} sweeps",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.min_len > self.max_len:
            names = {"least": Argument("min_len"), "most": Argument("max_len")}
            raise ConfigError(Message("{least} is larger than {most}", **names))
        self._check_exclusive("prompt", "prompts")
        self._check_exclusive("infill", "fix_positions")
        for name in ("prompt", "prompts"):
            self._check_exclusive(name, "template")
        if self.changes_template and self.template is None:
            name = "infill" if self.infill else "fix_positions"
            text = "{name} needs a template; give it with {change}"
            raise ConfigError(Message(text, name=Argument(name), change=Argument("template")))
        if self.template is not None and not self.changes_template:
            names = {"given": Argument("template"), "fill": Argument("infill"), "fix": Argument("fix_positions")}
            text = "{given} is given without saying what to do; add {fill} or {fix}"
            raise ConfigError(Message(text, **names))

    @property
    def changes_template(self) -> bool:
        """Whether a template is changed, rather than sequences written left to right."""
        return self.infill or self.fix_positions is not None

    def _check_exclusive(self, first: str, second: str) -> None:
        if getattr(self, first) not in (None, False) and getattr(self, second) not in (None, False):
            names = {"first": Argument(first), "second": Argument(second)}
            raise ConfigError(Message("{first} and {second} exclude each other; give one", **names))

    def to_mapping(self) -> dict[str, Any]:
        """The values by name, paths as text."""
        found = dataclasses.asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOutput:
    """Where sequences go, and what happens to a file that was not finished."""

    out: Path | None = option(
        None, "File to write, with FILE.meta.json next to it.", short="-o", unit="FILE", shown_default="standard output"
    )
    resume: bool = option(False, "Continue the sequences in FILE.part, with the same model and options.")
    force: bool = option(False, "Start over where FILE.part has sequences of a run that was interrupted.")

    def __post_init__(self) -> None:
        check(self)
        if self.out == Path("-"):
            object.__setattr__(self, "out", None)


def check_trained(config: ModelConfig, options: GenerateOptions) -> None:
    """Refuse what the model was not trained for.

    Raises:
        ConfigError: naming what it can do.
    """
    if options.changes_template and config.objective == "causal":
        text = "this model reads left to right only and cannot fill a template; leave it out, or start with {prompt}"
        raise ConfigError(Message(text, prompt=Argument("prompt")))
    if not options.changes_template and config.objective == "masked":
        text = (
            "this model was trained with masks only and cannot write left to right; use {fill} or {fix} with {change}"
        )
        names = {"fill": Argument("infill"), "fix": Argument("fix_positions"), "change": Argument("template")}
        raise ConfigError(Message(text, **names))
