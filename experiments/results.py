"""What every experiment writes: a table in Markdown and a picture, into the folder that the command line names."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def arguments(description: str) -> argparse.Namespace:
    """`--out`, and `--quick` for a run of seconds that shows that everything works."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="Folder for the table and the picture.")
    parser.add_argument("--quick", action="store_true", help="Few samples: shows that it runs, and nothing else.")
    return parser.parse_args()


def write_table(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table; numbers with two digits."""
    lines = [header, ["---"] * len(header), *([_cell(x) for x in row] for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"| {' | '.join(line)} |\n" for line in lines), encoding="utf-8")


def _cell(x: object) -> str:
    return f"{x:.1e}" if isinstance(x, float) else str(x)
