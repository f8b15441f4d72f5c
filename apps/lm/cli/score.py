"""`protperf score`: one row of a table for each record."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from protperf.errors import ConfigError, DataError, FileError
from protperf.lm.cli import EXIT_REJECTED
from protperf.lm.cli.common import one_of
from protperf.lm.device import DEVICES, DTYPES
from protperf.lm.scoring.choices import BATCH_TOKENS, DIRECTIONS, FORMATS, METHODS
from protperf.lm.training.options import POLICIES

GROUPS = {
    "input": ("model", "fasta", "seq_col", "id_col", "residues", "allow_rejects"),
    "score": ("method", "direction"),
    "output": ("out", "table", "resume", "force", "quiet", "verbose"),
    "computation": ("batch_tokens", "deterministic", "threads", "device", "dtype"),
}
EXAMPLES = """
protperf score runs/mine proteins.fa.gz > scores.tsv
protperf score runs/mine a.fa b.fa -o scores.csv --method pll
zcat proteins.fa.gz | protperf score runs/mine - | cut -f 2,6
protperf score runs/mine dms.csv --seq-col sequence -o dms.parquet
"""


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run directory, or one step of it.")],
    fasta: Annotated[
        list[str],
        typer.Argument(
            metavar="FASTA...", help="FASTA, or tables with --seq-col; plain or gz, xz, zst, bz2; - is standard input."
        ),
    ],
    seq_col: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The input is CSV or TSV, with its sequences in this column."),
    ] = None,
    id_col: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column of ids; default: id, and where there is none, the row's number."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="File to write, with FILE.meta.json beside it; default: standard output.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="ll: each residue given those before it; pll: each given all others, one pass a residue; auto: the "
            "one that the model was trained for, ll where it was trained for both.",
            autocompletion=one_of(METHODS),
        ),
    ] = "auto",
    direction: Annotated[
        str,
        typer.Option(metavar="NAME", help="Reading direction: forward.", autocompletion=one_of(DIRECTIONS)),
    ] = "forward",
    table: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="tsv, csv, jsonl or parquet (needs pyarrow); default: by the suffix of -o, else tsv.",
            autocompletion=one_of(FORMATS),
        ),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(help="Residues read together in one pass; more takes more memory and is not always faster.")
    ] = BATCH_TOKENS,
    residues: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="Odd residues: map mends and flags them, strict stops at them, skip leaves the record out.",
            autocompletion=one_of(POLICIES),
        ),
    ] = "map",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted file of -o.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start over where rows of an interrupted file are kept.")
    ] = False,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Same bits whatever the batch size, order and threads; slower."),
    ] = False,
    allow_rejects: Annotated[
        bool, typer.Option("--allow-rejects", help="Exit 0 and not 5 where records were left out.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("-j", "--threads", help="Threads; default: PROTPERF_NUM_THREADS, else all cores allowed."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto or cpu.", autocompletion=one_of(DEVICES))] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Type that is computed in: float32 or float64.", autocompletion=one_of(DTYPES)
        ),
    ] = "float32",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar and no notes.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Tell what is computed where, how fast, and what was mended.")
    ] = False,
) -> int:
    """Write the table of scores; returns the exit code."""
    from protperf import io
    from protperf.lm.cli.common import check_threads, check_voice, set_threads, surroundings, tell, unwind
    from protperf.lm.device import check_device, check_dtype
    from protperf.lm.scoring import choices
    from protperf.lm.scoring.formats import Encoder, choose_format, is_file
    from protperf.lm.scoring.output import file_digest, open_sink
    from protperf.lm.storage import checkpoint

    started = time.monotonic()
    out = None if out is not None and str(out) == "-" else out
    encoder = Encoder(choices.COLUMNS, choose_format(table, out))
    _keep_input(fasta, out)
    check_voice(quiet, verbose)
    check_device(device)
    check_dtype(dtype)
    check_threads(threads)
    choices.check_method(method)
    choices.choose_direction(direction)
    choices.check_batch_tokens(batch_tokens)
    reading: dict[str, Any] = {"residues": residues, "seq_col": seq_col, "id_col": id_col}
    if not model.is_dir():
        checkpoint.find(model)
    reader = io.read_tokens(fasta, **reading)
    # A mistake was told by now; from here on torch is loaded.
    from protperf.lm.cli.progress import ScoreBar, shows, waiting
    from protperf.lm.loading import load_run
    from protperf.lm.scoring.estimate import count_work, estimate_pll
    from protperf.lm.scoring.score import score_batches

    num_threads = set_threads(threads)
    loaded = load_run(model, dtype)
    chosen = choices.choose_method(loaded.network.config.objective, method)
    announced = chosen == "pll" and not quiet
    with waiting("reading", " residues", quiet) as seen:
        work = count_work(fasta, chosen, seen.update, **reading) if announced or shows(quiet) else None
    if not quiet:
        tell(f"{loaded.step.path}, method {chosen}")
    if verbose:
        tell(surroundings(num_threads, dtype))
    if announced:
        tell(f"pll reads each sequence once for each residue: {estimate_pll(loaded.network, work)}")
    packing: dict[str, Any] = {"batch_tokens": batch_tokens, "deterministic": deterministic}
    options = {**reading, "method": chosen, "direction": direction, **packing, "dtype": dtype}
    with waiting("checksum", "B", quiet) as seen:
        digests = [file_digest(path, seen.update) for path in fasta] if is_file(out) else []
    fingerprint = _fingerprint(loaded.step, digests, options, num_threads)
    unwind()
    with ScoreBar(None if work is None else work.tokens, quiet) as bar:
        records = (record for batch in reader for record in batch)
        scored = score_batches(loaded.network, records, chosen, **packing, progress=bar.tokens)
        sink = open_sink(out, encoder, fingerprint, resume, force)
        named = {"command": sys.argv, "model": str(loaded.step.path), "input": fasta}
        note = _write(sink, records, scored, bar, chosen, lambda: {**named, "rejected": reader.summary.rejected})
    if note is not None and not quiet:
        tell(f"note: {note}")
    if verbose:
        _tell_work(reader.summary, started)
    return _summarize(reader, allow_rejects, quiet)


def _write(
    sink: Any,
    records: Iterator[Any],
    scored: Iterator[tuple[list[Any], list[Any]]],
    bar: Any,
    method: str,
    provenance: Callable[[], dict[str, Any]],
) -> str | None:
    from protperf.lm.cli.common import tell
    from protperf.lm.scoring.estimate import tokens_read

    try:
        sink.replay(bar.passed(records, lambda record: tokens_read(len(record), method)))
        for batch, rows in scored:
            sink.write(batch, rows)
            bar.proteins(len(rows))
        return sink.finish(provenance())
    except (DataError, ConfigError) as error:
        # A refused resume keeps what it refused to continue.
        if isinstance(error, DataError):
            sink.discard()
        raise
    except BaseException:
        sink.interrupt()
        bar.close()
        if sink.kept:
            tell(f"{sink.kept} rows are kept; continue with --resume")
        raise


def _summarize(reader: Any, allow_rejects: bool, quiet: bool) -> int:
    from protperf.lm.cli.common import tell

    for text in () if quiet else reader.summary.notes:
        tell(f"note: {text}")
    empty = () if reader.summary.records else ("no records",)
    for text in reader.warnings or empty:
        tell(f"warning: {text}")
    return EXIT_REJECTED if reader.summary.rejected and not allow_rejects else 0


def _tell_work(summary: Any, started: float) -> None:
    from protperf.lm.cli.common import spent, tell

    tell(f"read {summary.records:,} records with {summary.residues:,} residues in {spent(started)}")
    flagged = ", ".join(f"{count:,} {name}" for name, count in summary.flagged.items() if count)
    if flagged:
        tell(f"flagged {flagged}")


def _fingerprint(step: Any, digests: list[str | None], options: dict[str, Any], num_threads: int) -> dict[str, Any]:
    """What decides the bytes of the table."""
    import torch

    from protperf import build_info

    info = build_info()
    return {
        "version": info["version"],
        "model_sha256": step.manifest["files"]["model.safetensors"]["sha256"],
        "input_sha256": digests,
        **options,
        "device": "cpu",
        "isa": info["isa"],
        "threads": 1 if options["deterministic"] else num_threads,
        "torch": torch.__version__,
        "seed": step.manifest.get("options", {}).get("seed"),
    }


def _keep_input(fasta: list[str], out: Path | None) -> None:
    from protperf.lm.scoring.formats import is_file
    from protperf.lm.scoring.output import written

    if not is_file(out):
        return
    if not out.resolve().parent.is_dir():
        raise FileError(None, "there is no such directory; make it first", str(out.parent))
    for taken in written(Path(os.path.realpath(out))):
        for path in fasta:
            if taken.is_file() and os.path.exists(path) and os.path.samefile(taken, path):
                raise ConfigError(f"-o {out} would overwrite the input file {path}; choose another name")
