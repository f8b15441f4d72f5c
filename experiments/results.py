"""What every experiment has in common: its options, a table in Markdown and the processor time that it took."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
GLOBINS = Path(__file__).resolve().parents[1] / "examples" / "data" / "globins.fasta.gz"


def arguments(description: str, *, fasta: bool = False) -> argparse.Namespace:
    """`--out`, `--quick` and `--full`; with `fasta` also which proteins are read."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="Folder for the table and the picture.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="A run of seconds: shows that it runs, and nothing else.")
    form.add_argument("--full", action="store_true", help="A longer run: larger models, longer inputs, more samples.")
    if fasta:
        parser.add_argument("--fasta", type=Path, default=GLOBINS, help="Proteins (default: the globins of the demo).")
    return parser.parse_args()


def choose(options: argparse.Namespace, *, quick: T, usual: T, full: T) -> T:
    """The one of three that the form of the run asks for."""
    return quick if options.quick else full if options.full else usual


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table; numbers with two digits."""
    lines = [header, ["---"] * len(header), *([_cell(x) for x in row] for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")


def print_cost() -> None:
    """The processor time of this process: unlike the time on the clock, it hardly depends on what else is running."""
    print(f"processor time {time.process_time():.0f} s, all threads together")


def _cell(x: object) -> str:
    return f"{x:.1e}" if isinstance(x, float) else str(x)
