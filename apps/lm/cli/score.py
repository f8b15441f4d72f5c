"""`protperf score`: one row of a table for each record."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from protperf.lm.cli import EXIT_REJECTED


def run(
    model: Annotated[Path, typer.Argument(help="Run directory, or one step of it.")],
    fasta: Annotated[list[str], typer.Argument(help="FASTA, plain or gz, xz, zst, bz2; - is standard input.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; default: standard output.")] = None,
    method: Annotated[str, typer.Option(help="ll (left to right), pll (each site given all others) or auto.")] = "auto",
    batch_tokens: Annotated[int, typer.Option(help="Tokens packed into one pass.")] = 4096,
    residues: Annotated[str, typer.Option(help="Odd residues: map, strict or skip.")] = "map",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Same bits whatever the batch size, order and threads.")
    ] = False,
    allow_rejects: Annotated[bool, typer.Option("--allow-rejects", help="Rejected records are no failure.")] = False,
    threads: Annotated[int | None, typer.Option("-j", "--threads", help="Threads; default: all cores.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress bar and no notes.")] = False,
) -> int:
    """Write one row for each record, in their order."""
    from protperf import io
    from protperf.lm.cli.common import set_threads
    from protperf.lm.scoring.score import COLUMNS, choose_method, score_records
    from protperf.lm.training.run import load_run

    set_threads(1 if deterministic else threads)
    reader = io.read_tokens(fasta, residues=residues)
    loaded = load_run(model)
    chosen = choose_method(loaded.network, method)
    if not quiet:
        print(f"protperf: {loaded.step.path}, method {chosen}", file=sys.stderr)
    records = _shown((record for batch in reader for record in batch), quiet)
    rows = score_records(loaded.network, records, chosen, batch_tokens=batch_tokens, deterministic=deterministic)
    lines = ("\t".join(row.fields()) + "\n" for row in rows)
    _write(out, "\t".join(COLUMNS) + "\n", lines)
    summary = reader.summary
    for text in summary.warnings:
        print(f"protperf: warning: {text}", file=sys.stderr)
    if summary.records == 0 and not summary.warnings:
        print("protperf: warning: no records", file=sys.stderr)
    if summary.rejected:
        print(f"protperf: warning: {summary.rejected} records were rejected and have no row", file=sys.stderr)
        return 0 if allow_rejects else EXIT_REJECTED
    return 0


def _shown(records: Iterator[Any], quiet: bool) -> Iterator[Any]:
    from tqdm import tqdm

    shown = sys.stderr.isatty() and not quiet
    return iter(tqdm(records, unit="protein", disable=not shown, dynamic_ncols=True, file=sys.stderr, delay=2))


def _write(out: Path | None, header: str, lines: Iterator[str]) -> None:
    """Whole lines to standard output, or to a temporary file that replaces `out` at the end."""
    if out is None:
        sys.stdout.write(header)
        for line in lines:
            sys.stdout.write(line)
        sys.stdout.flush()
        return
    import os

    partial = out.with_name(f"{out.name}.part")
    with open(partial, "w", encoding="utf-8", newline="") as stream:
        stream.write(header)
        for line in lines:
            stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, out)
