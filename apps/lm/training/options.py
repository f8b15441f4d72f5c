"""What a training run is asked to do: checked before anything is read or written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError
from protperf.lm.device import DEVICES, check_device, check_dtype
from protperf.lm.model.config import SIZES
from protperf.lm.options import REQUIRED, check, from_mapping, listed, option, options_of
from protperf.lm.shared_options import parse_duration, residues_option, seq_col_option
from protperf.lm.training.recipe import RECIPES
from protperf.message import Argument, Message

DURATION_OPTIONS = ("steps", "epochs", "time_s")
"""Options of which exactly one says how long to train."""
OPTIMIZATION_OPTIONS = (
    "batch_tokens", "accumulate", "crop", "starts", "weights", "optimizer", "lr", "warmup", "schedule", "clip",
    "weight_decay", "ema", "redraw_interval",
)  # fmt: skip
"""Options of how the weights are changed."""
OPTIMIZERS = ("adamw", "muon")
LOGGERS = ("jsonl", "tensorboard")
SCHEDULES = ("cosine", "linear", "wsd", "constant")
STARTS = ("whole", "varied")
WEIGHTS = ("equal", "relatives")
_BEFORE = {
    "engine": "torch", "optimizer": "adamw", "starts": "whole", "weights": "equal", "hold_out": "random",
    "ema": 0.0, "patience": 0, "init": None, "precision": "f32", "lora": 0,
    "schedule": "cosine", "logger": "jsonl", "attention_backend": "auto",
}  # fmt: skip
"""What runs did from before there was a choice, which do not say it."""
DTYPES = ("float32",)
"""Types that a training can compute in."""


HOLD_OUTS = ("clusters", "random")


def read_fraction_or_file(text: str) -> float | Path:
    """A number as the fraction that it is, none as 0; any other text as a path."""
    if text == "none":
        return 0.0
    try:
        return float(text)
    except ValueError:
        return Path(text)


def _check_name(path: str) -> None:
    if not path.isprintable():
        raise ConfigError(
            Message("{init} has characters that cannot be kept: {path!a}", init=Argument("init"), path=path)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of training; lengths in tokens, durations in seconds.

    Exactly one of `steps`, `epochs` and `time_s` ends the run. `validate` is the fraction of the sequences that is held
    out, 0 for none of them; None says that a file is given instead. `residues` is the policy for odd residues.
    `redraw_interval` counts optimizer steps; 0 never redraws. An `engine` of auto becomes the one that it means.
    """

    steps: int | None = option(
        None, "Train for this many optimizer steps.", least=1, most=2**40,
        shown_default="set by --recipe where no length is given",
    )  # fmt: skip
    epochs: float | None = option(
        None, "Train for this many passes over the sequences.", unit="X", least=1e-6, most=1e9
    )
    time_s: float | None = option(
        None, "Train for this long, such as 90s, 20m or 1h30m.", argument="time", unit="DURATION", read=parse_duration,
        least=1.0, most=1e9,
    )  # fmt: skip
    batch_tokens: int = option(4096, "Tokens per batch.", least=1, most=2**40)
    accumulate: int = option(1, "Batches per optimizer step.", least=1, most=2**16)
    crop: int = option(1024, "Most tokens of one sequence seen at once.", least=16, most=2**31)
    starts: str = option(
        "whole", "whole, or varied: half of the sequences are read from a later residue, or with others in front.",
        choices=STARTS,
    )  # fmt: skip
    weights: str = option(
        "equal", "equal, or relatives: a pass over the sequences reads each with a probability of one in the number "
        "of its relatives at 80 % identity, so that a crowd counts as one.", choices=WEIGHTS,
    )  # fmt: skip
    optimizer: str = option(
        "muon", "muon: Muon for the matrices, which then learn in far fewer steps, AdamW for the rest; or adamw.",
        choices=OPTIMIZERS,
    )  # fmt: skip
    lr: float = option(1e-3, "Peak learning rate; that of Muon is 20 times as high.", least=1e-12, most=1e3)
    warmup: int = option(50, "Steps of linear warm-up.", least=0, most=2**40)
    schedule: str = option(
        "cosine", "Learning rate after the warm-up: cosine or linear, down to a tenth of the peak at the last step; "
        "wsd: constant, and linear in the last fifth; constant.", choices=SCHEDULES,
    )  # fmt: skip
    clip: float = option(1.0, "Largest norm of the gradient.", least=1e-12, most=1e12)
    weight_decay: float = option(0.1, "Weight decay of matrices.", least=0.0, most=1e3)
    init: str | None = option(
        None, "Run, one step of it, or builtin:nano, whose weights to start with, and whose sizes and random features "
        "are kept; none starts with random weights.", unit="MODEL", judge=_check_name,
        shown_default="that of the recipe",
    )  # fmt: skip
    lora: int = option(
        0, "Rank of low-rank adapters of the matrices: with --init, they alone learn, and are added to the weights "
        "where these are saved. 0 trains all weights.", unit="RANK", least=0, most=2**14,
    )  # fmt: skip
    ema: float = option(
        0.0, "Share of a moving average of the weights that a step keeps, such as 0.99; the average is then what "
        "answers. 0 averages nothing.", least=0.0, below=1.0,
    )  # fmt: skip
    patience: int = option(
        0, "Stop after this many validations without a better one; 0 never does.", unit="N", least=0, most=2**40
    )
    validate: float | None = option(
        0.02, "Fraction of the sequences to hold out for validation; a file of other sequences in the same format; or "
        "none, to train on all.", unit="X|FILE|none", read=read_fraction_or_file, or_path=True, least=0.0, most=0.9,
    )  # fmt: skip
    hold_out: str = option(
        "random", "What is held out: random sequences; or clusters, so that relatives stay in one part, in sets of up "
        "to 4 million residues.", choices=HOLD_OUTS,
    )  # fmt: skip
    residues: str = residues_option()
    engine: str = option(
        "auto", "What computes a step on a CPU: native, fast, or torch, of torch's own operations; auto is native, and "
        "torch with an --attention-backend.", choices=("auto", "native", "torch"),
    )  # fmt: skip
    precision: str = option(
        "f32", "What the native engine multiplies matrices in: f32; or bf16 with sums in float32, faster on processors "
        "with AMX, and on AMD's with AVX-512 BF16. Weights, norms and scores stay in float32; without AMX attention "
        "does too.",
        choices=("f32", "bf16"),
    )  # fmt: skip
    attention_backend: str = option(
        "auto", "wgpu: linear attention, forward and backward, on a GPU with Vulkan, Metal or DX12, and the rest on "
        "the CPU by torch; auto: all where --device says.", choices=("auto", "wgpu"),
    )  # fmt: skip
    redraw_interval: int = option(
        0, "Steps between redraws of the random features; 0 never redraws.", least=0, most=2**40
    )
    checkpoint_every: int = option(
        0, "Steps between checkpoints.", least=0, most=2**40, shown_default="a tenth of the run, at least 100"
    )  # fmt: skip
    log_every: int = option(10, "Steps between lines of metrics.jsonl.", least=1, most=2**40)
    logger: str = option(
        "jsonl", "Who gets the metrics: jsonl, the file metrics.jsonl alone; or tensorboard, which then shows the run "
        "directory, and needs the package tensorboard.", choices=LOGGERS,
    )  # fmt: skip
    seed: int = option(42, "Seed of everything random.", least=0, most=2**63 - 1)

    def __post_init__(self) -> None:
        arguments = {name: options_of(TrainOptions)[name].argument for name in DURATION_OPTIONS}
        given = [argument for name, argument in arguments.items() if getattr(self, name) is not None]
        if len(given) != 1:
            known, parts = listed(arguments.values())
            found = listed(given)[0] if given else "none of them"
            raise ConfigError(Message(f"give exactly one of {known}; given: {found}", **parts))
        check(self)
        if self.lora and self.init is None:
            text = "{lora} adapts a trained model; name it with {init}"
            raise ConfigError(Message(text, lora=Argument("lora"), init=Argument("init")))
        is_elsewhere = self.attention_backend != "auto"
        if is_elsewhere and self.engine == "native":
            text = "{engine} computes attention by itself; leave {engine_name} out with {attention_backend}"
            names = {"engine_name": Argument("engine"), "attention_backend": Argument("attention_backend")}
            raise ConfigError(Message(text, engine=Argument("engine", "native"), **names))
        if self.engine == "auto":
            object.__setattr__(self, "engine", "torch" if is_elsewhere else "native")
        if self.precision != "f32" and self.engine != "native":
            text = "{precision} is {value}, which the native engine computes alone; leave {engine} out"
            parts = {
                "precision": Argument("precision"),
                "engine": Argument("attention_backend" if is_elsewhere else "engine"),
            }
            raise ConfigError(Message(text, value=self.precision, **parts))

    @classmethod
    def from_mapping(cls, values: Any) -> TrainOptions:
        """Options from a table of a file, which has all of them.

        Only runs from before there was a choice, such as of the engine, do not say which (`_BEFORE`).

        Raises:
            ConfigError: a key that is unknown or missing, or a value out of range.
        """
        if isinstance(values, dict):
            values = {**_BEFORE, **values}
        return from_mapping(cls, values, complete=True)

    def to_mapping(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PathOptions:
    """The sequence files that a training reads, and the run directory that it makes."""

    files: tuple[str, ...] = option((), "More files, after those of --fasta.", positional=True, unit="FILE...")
    fasta: tuple[str, ...] = option(
        (), "FASTA, or a table with --seq-col; plain or gz, xz, zst, bz2; - is standard input; repeatable.", unit="FILE"
    )
    out: Path = option(REQUIRED, "Run directory to make.", short="-o", unit="DIR")

    def __post_init__(self) -> None:
        check(self)
        if not self.inputs:
            raise ConfigError(Message("no sequences to train on; name a file with {fasta}", fasta=Argument("fasta")))

    @property
    def inputs(self) -> list[str]:
        """All sequence files, in the order in which they are read."""
        return [*self.fasta, *self.files]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a training is asked besides the options that its run keeps."""

    size: str = option(
        "nano", "nano (0.9 million parameters, minutes), tiny (5, an hour), small (27, a day), base (92), or a .toml "
        "file.", unit="NAME|FILE", suggestions=SIZES, shown_default="nano, or by --recipe",
    )  # fmt: skip
    recipe: str = option(
        "auto", "Options that suit the data; any of them can be given as well. auto chooses by the data and says why. "
        "family, for related sequences whose mutants are to be ranked: --init builtin:nano (whose attention is exact, "
        "as that of a network of another size then is) --objective causal --directions both --starts varied "
        "--weights relatives, and dropout of 0.3 below 300,000 residues, of 0.1 below a million. proteome: "
        "--objective causal. corpus: --size tiny. plain changes nothing.",
        choices=RECIPES,
    )  # fmt: skip
    dry_run: bool = option(
        False, "Say how many steps, how much time and how much memory the training would take, by a few steps of it. "
        "Nothing is written."
    )  # fmt: skip
    seq_col: str | None = seq_col_option()
    resume: bool = option(
        False,
        "Continue the run in the directory with the options that it was started with. Only how long it trains, which "
        "counts from its start, and the options of bookkeeping may be others.",
    )
    force: bool = option(
        False, "Replace the run in the directory; with --resume, only if none of its checkpoints can be used."
    )

    def __post_init__(self) -> None:
        check(self)


def _check_dtype(dtype: str) -> None:
    check_dtype(dtype, DTYPES)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptions:
    """Where a training computes, and in which type."""

    device: str = option("auto", f"Where to compute: {' or '.join(DEVICES)}.", suggestions=DEVICES, judge=check_device)
    dtype: str = option("float32", "Type to compute in: float32.", suggestions=DTYPES, judge=_check_dtype)

    def __post_init__(self) -> None:
        check(self)
