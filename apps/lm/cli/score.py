"""`protperf score`: one row of a table for each record."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from protperf.errors import ConfigError, DataError
from protperf.lm.cli import EXIT_REJECTED

GROUPS = {
    "input": ("model", "fasta", "residues", "allow_rejects"),
    "score": ("method", "direction"),
    "output": ("out", "table", "resume", "quiet"),
    "computation": ("batch_tokens", "deterministic", "threads", "device"),
}
EXAMPLES = """
protperf score runs/mine proteins.fa.gz > scores.tsv
protperf score runs/mine a.fa b.fa -o scores.csv --method pll
zcat proteins.fa.gz | protperf score runs/mine - | cut -f 2,6
"""


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Run directory, or one step of it.")],
    fasta: Annotated[
        list[str], typer.Argument(metavar="FASTA...", help="FASTA, plain or gz, xz, zst, bz2; - is standard input.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="File to write; default: standard output."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="ll: each residue given those before it; pll: each given all others, one pass a residue; auto: the "
            "one that the model was trained for, ll where it was trained for both.",
        ),
    ] = "auto",
    direction: Annotated[str, typer.Option(metavar="NAME", help="Reading direction: forward.")] = "forward",
    table: Annotated[
        str | None,
        typer.Option("--format", metavar="NAME", help="tsv, csv or jsonl; default: by the suffix of -o, else tsv."),
    ] = None,
    batch_tokens: Annotated[
        int, typer.Option(help="Residues read together in one pass; more takes more memory and is not always faster.")
    ] = 4096,
    residues: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="Odd residues: map mends and flags them, strict stops at them, skip leaves the record out.",
        ),
    ] = "map",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted file of -o.")] = False,
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
    device: Annotated[str, typer.Option(metavar="NAME", help="auto or cpu.")] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar and no notes.")] = False,
) -> int:
    """Write the table of scores; returns the exit code."""
    from protperf import io
    from protperf.lm.cli.common import check_device, set_threads
    from protperf.lm.scoring.output import Encoder, choose_format, open_sink
    from protperf.lm.scoring.score import COLUMNS, choose_direction, choose_method, score_batches
    from protperf.lm.training.run import load_run

    out = None if out is not None and str(out) == "-" else out
    encoder = Encoder(COLUMNS, choose_format(table, out))
    _keep_input(fasta, out)
    check_device(device)
    num_threads = set_threads(threads)
    reader = io.read_tokens(fasta, residues=residues)
    loaded = load_run(model)
    chosen = choose_method(loaded.network, method)
    choose_direction(direction)
    if not quiet:
        print(f"protperf: {loaded.step.path}, method {chosen}", file=sys.stderr)
        if chosen == "pll":
            _announce(loaded.network, fasta, residues)
    choices: dict[str, Any] = {"batch_tokens": batch_tokens, "deterministic": deterministic}
    fingerprint = {} if out is None else _fingerprint(loaded.step, fasta, choices, chosen, residues, num_threads)
    records = _shown((record for batch in reader for record in batch), quiet)
    scored = score_batches(loaded.network, records, chosen, **choices)
    sink = open_sink(out, encoder, fingerprint, resume)
    named = {"command": sys.argv, "model": str(loaded.step.path), "input": fasta}
    _write(sink, records, scored, lambda: {**named, "rejected": reader.summary.rejected})
    return _summarize(reader.summary, allow_rejects, quiet)


def _write(
    sink: Any,
    records: Iterator[Any],
    scored: Iterator[tuple[list[Any], list[Any]]],
    provenance: Callable[[], dict[str, Any]],
) -> None:
    from protperf.lm.scoring.output import FileSink

    try:
        if isinstance(sink, FileSink):
            sink.replay(records)
        for batch, rows in scored:
            sink.write(batch, rows)
        sink.finish(provenance())
    except (DataError, ConfigError) as error:
        # A refused resume keeps what it refused to continue.
        if isinstance(sink, FileSink) and isinstance(error, DataError):
            sink.discard()
        raise
    except BaseException:
        if isinstance(sink, FileSink):
            sink.interrupt()
            if sink.kept:
                print(f"protperf: {sink.kept} rows are kept; continue with --resume", file=sys.stderr)
        raise


def _summarize(summary: Any, allow_rejects: bool, quiet: bool) -> int:
    for text in () if quiet else summary.notes:
        print(f"protperf: note: {text}", file=sys.stderr)
    for text in summary.warnings:
        print(f"protperf: warning: {text}", file=sys.stderr)
    if summary.records == 0 and not summary.warnings:
        print("protperf: warning: no records", file=sys.stderr)
    if summary.rejected:
        print(f"protperf: warning: {summary.rejected} records were rejected and have no row", file=sys.stderr)
        return 0 if allow_rejects else EXIT_REJECTED
    return 0


def _fingerprint(
    step: Any, fasta: list[str], choices: dict[str, Any], method: str, residues: str, num_threads: int
) -> dict[str, Any]:
    """What decides the bytes of the table."""
    import torch

    from protperf import build_info
    from protperf.lm.scoring.output import file_digest

    info = build_info()
    return {
        "version": info["version"],
        "model_sha256": step.manifest["files"]["model.safetensors"]["sha256"],
        "input_sha256": [file_digest(path) for path in fasta],
        "residues": residues,
        "method": method,
        "direction": "forward",
        **choices,
        "dtype": "float32",
        "device": "cpu",
        "isa": info["isa"],
        "threads": 1 if choices["deterministic"] else num_threads,
        "torch": torch.__version__,
        "seed": step.manifest.get("options", {}).get("seed"),
    }


def _keep_input(fasta: list[str], out: Path | None) -> None:
    from protperf.lm.scoring.output import beside

    if out is None or (out.exists() and not out.is_file()):
        return
    for written in (out, *beside(Path(os.path.realpath(out)))):
        for path in fasta:
            if written.is_file() and os.path.exists(path) and os.path.samefile(written, path):
                raise ConfigError(f"-o {out} would overwrite the input file {path}; choose another name")


def _announce(network: Any, fasta: list[str], residues: str) -> None:
    """Say how long `pll` will take: one pass for each residue."""
    from protperf.lm.scoring.estimate import estimate_pll

    print(
        f"protperf: pll reads each sequence once for each residue: {estimate_pll(network, fasta, residues)}",
        file=sys.stderr,
    )


def _shown(records: Iterator[Any], quiet: bool) -> Iterator[Any]:
    from tqdm import tqdm

    shown = sys.stderr.isatty() and not quiet
    return iter(tqdm(records, unit="protein", disable=not shown, dynamic_ncols=True, file=sys.stderr, delay=2))
