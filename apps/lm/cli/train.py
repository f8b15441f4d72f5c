"""`protperf train`: from FASTA files to a run directory."""

from __future__ import annotations

import time as clock
from pathlib import Path
from typing import Annotated, Any

import typer

from protperf.errors import ConfigError
from protperf.lm.cli import EXIT_REJECTED
from protperf.lm.cli.common import one_of
from protperf.lm.device import DEVICES
from protperf.lm.model.config import ATTENTIONS, OBJECTIVES, SIZES
from protperf.lm.training.options import POLICIES

_DTYPES = ("float32",)

GROUPS = {
    "data": ("files", "fasta", "seq_col", "validate", "residues", "allow_rejects"),
    "run": ("out", "resume", "force", "seed", "threads", "device", "dtype", "quiet", "verbose"),
    "length of the training, one of": ("time", "epochs", "steps"),
    "model": ("size", "objective", "attention", "num_features", "redraw_interval", "dropout"),
    "optimization": ("batch_tokens", "accumulate", "crop", "lr", "warmup", "clip", "weight_decay"),
    "bookkeeping": ("checkpoint_every", "log_every"),
}
EXAMPLES = """
protperf train --fasta proteins.fa.gz -o runs/mine --time 20m
protperf train --fasta family.fa -o runs/family --size tiny --epochs 10
protperf train --fasta family.fa -o runs/family --resume
protperf train --fasta family.fa -o runs/family --resume --epochs 20
protperf train --fasta dms.csv --seq-col seq -o runs/dms --epochs 5
"""


def run(
    ctx: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Run directory to make.")],
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE...]", help="More files, after those of --fasta.")
    ] = None,
    fasta: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="FASTA, or a table with --seq-col; plain or gz, xz, zst, bz2; - is standard input; repeatable.",
        ),
    ] = None,
    seq_col: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The input is CSV or TSV, with its sequences in this column."),
    ] = None,
    size: Annotated[
        str,
        typer.Option(metavar="NAME", help="nano, tiny, small, base, or a .toml file.", autocompletion=one_of(SIZES)),
    ] = "nano",
    objective: Annotated[
        str, typer.Option(metavar="NAME", help="masked, causal or both.", autocompletion=one_of(OBJECTIVES))
    ] = "both",
    attention: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="relu or softmax (linear in length), or exact.",
            autocompletion=one_of(ATTENTIONS),
        ),
    ] = "relu",
    num_features: Annotated[int | None, typer.Option(help="Random features a head; default of the size.")] = None,
    redraw_interval: Annotated[int, typer.Option(help="Steps between redraws of the features; 0 is never.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Train this many steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Train this many passes over the sequences.")] = None,
    time: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Train this long, such as 90s, 20m, 1h30m.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens a batch.")] = 4096,
    accumulate: Annotated[int, typer.Option(help="Batches an optimizer step.")] = 1,
    crop: Annotated[int, typer.Option(help="Tokens of a sequence seen at once while training.")] = 1024,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    warmup: Annotated[int, typer.Option(help="Steps of linear warm-up.")] = 50,
    clip: Annotated[float, typer.Option(help="Largest gradient norm.")] = 1.0,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = 0.1,
    dropout: Annotated[float, typer.Option(help="Dropout probability.")] = 0.0,
    validate: Annotated[
        str,
        typer.Option(
            metavar="X|FILE", help="Fraction of the sequences to hold out, or a file of others, of the same kind."
        ),
    ] = "0.02",
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints; 0 chooses.")] = 0,
    log_every: Annotated[int, typer.Option(help="Steps between lines of metrics.jsonl.")] = 10,
    residues: Annotated[
        str,
        typer.Option(metavar="POLICY", help="Odd residues: map, strict or skip.", autocompletion=one_of(POLICIES)),
    ] = "map",
    allow_rejects: Annotated[
        bool, typer.Option("--allow-rejects", help="Exit 0 and not 5 where records were left out.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the run in the directory with the options it was begun with. Others are refused, but for "
            "--steps, --epochs or --time, which count from its beginning, and those of bookkeeping.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in the directory.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 42,
    threads: Annotated[int | None, typer.Option("-j", "--threads", help="Threads; default: all cores.")] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto or cpu.", autocompletion=one_of(DEVICES))] = "auto",
    dtype: Annotated[
        str,
        typer.Option(metavar="NAME", help="Type that is computed in: float32.", autocompletion=one_of(_DTYPES)),
    ] = "float32",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar and no summary.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Tell of the data, the model and each checkpoint too.")
    ] = False,
) -> int:
    """Train into a run directory; the options are those of `TrainOptions` and of the model."""
    from protperf.lm.cli.common import check_voice, set_threads, spent, surroundings, tell
    from protperf.lm.device import check_device, check_dtype
    from protperf.lm.training.clock import Clock

    # Counts in --time from here on: loading libraries and sequences is part of it.
    started, wall_clock = clock.monotonic(), Clock()

    inputs = [*(fasta or []), *(files or [])]
    if not inputs:
        raise ConfigError("there are no sequences to train on; name a file with --fasta")
    check_voice(quiet, verbose)
    check_device(device)
    check_dtype(dtype, _DTYPES)
    from protperf.lm.cli.progress import TrainBar
    from protperf.lm.training.resume import new_choices, stored_choices
    from protperf.lm.training.run import train_run

    num_threads = set_threads(threads)
    given, held = _given(ctx)
    config, options = stored_choices(out, given) if resume else new_choices(given)
    if verbose:
        tell(surroundings(num_threads, dtype))
    with TrainBar(quiet, options.time_s) as bar:
        outcome = train_run(
            inputs,
            out,
            config,
            options,
            validate=held,
            seq_col=seq_col,
            resume=resume,
            force=force,
            clock=wall_clock,
            report=bar.report,
            warn=bar.warn,
            detail=bar.warn if verbose else lambda text: None,
        )
    if not quiet:
        if outcome.remark is not None:
            tell(f"warning: {outcome.remark}")
        figures = ", ".join(f"{name} {value:.3f}" for name, value in outcome.figures.items())
        tell(f"{outcome.run}: {outcome.steps} steps{figures and f'; {figures}'}")
    if verbose:
        tell(f"took {spent(started)}")
    if outcome.signal is not None:
        tell("stopped and saved; continue with --resume")
        return 128 + outcome.signal
    return EXIT_REJECTED if outcome.rejected and not allow_rejects else 0


def _given(ctx: typer.Context) -> tuple[dict[str, Any], str | None]:
    """What the command line names of the model and the options, and the file to validate on, if it names one."""
    from protperf.lm.training.options import parse_duration

    named = {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}
    given = {name: ctx.params[name] for name in named if name not in (*GROUPS["data"], *GROUPS["run"])}
    given |= {name: ctx.params[name] for name in ("residues", "seed") if name in named}
    if "time" in given:
        given["time_s"] = parse_duration(given.pop("time"))
    if "validate" not in named:
        return given, None
    try:
        return {**given, "validate": float(ctx.params["validate"])}, None
    except ValueError:
        return {**given, "validate": None}, ctx.params["validate"]
