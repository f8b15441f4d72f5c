"""Twenty losses and a table of scores of a small model of each attention, in a directory of their own.

Dropout, masking and redraws are on. Torch multiplies the matrices here, so the figures belong to one processor and one
version of torch: they are compared with figures of the same machine.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SIZE = "num_layers = 2\nmodel_dim = 48\nnum_heads = 3\nhead_dim = 16\nffn_dim = 96\nnum_features = 40\n"
GLOBINS = Path(__file__).resolve().parents[2] / "examples/data/globins.fasta.gz"
# Around the lanes and chunks of the kernels, with odd letters; the last has no residue that is scored.
PROTEINS = ">a\nMKT\n>b\n" + "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHF" * 3 + "\n>c\nmkvuBX-OW*\n>d\nX\n"


def main(work: Path) -> int:
    """Print one line for each figure of each model."""
    (work / "size.toml").write_text(SIZE)
    (work / "proteins.fasta").write_text(PROTEINS)
    for attention in ("relu", "softmax", "exact"):
        for name, value in _figures(work, attention):
            print(f"{attention} {name}\t{value}", flush=True)
    return 0


def _figures(work: Path, attention: str) -> Iterator[tuple[str, str]]:
    run = work / attention
    options = f"--attention {attention} --objective both --dropout 0.1 --redraw-interval 7 --log-every 1 --threads 2"
    length = "--steps 20 --batch-tokens 1500 --checkpoint-every 10 --quiet"
    _protperf("train", "--fasta", GLOBINS, "-o", run, "--size", work / "size.toml", *options.split(), *length.split())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    yield from ((f"loss {line['step']}", float(line["loss"]).hex()) for line in lines if "loss" in line)
    yield from ((f"val_loss {line['step']}", float(line["val_loss"]).hex()) for line in lines if "val_loss" in line)
    yield "weights", hashlib.sha256((run / "step-20/model.safetensors").read_bytes()).hexdigest()
    for method in ("ll", "pll"):
        table = work / f"{attention}-{method}.tsv"
        words = ["--method", method, "--threads", "2", "--quiet", "-o", table]
        _protperf("score", run / "step-20", work / "proteins.fasta", *words)
        # In lower case: how a missing value is spelt is not what is pinned here.
        yield f"scores {method}", hashlib.sha256(table.read_bytes().lower()).hexdigest()


def _protperf(*words: object) -> None:
    subprocess.run([Path(sys.executable).with_name("protperf"), *map(str, words)], check=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
