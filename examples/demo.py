"""From a FASTA file to a scored protein in three minutes: train on globins, score a globin and two other sequences.

Run by `make demo` from the root of a checkout. It calls the installed command as a user would and prints each call.
"""

import csv
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

from Bio import SeqIO
from Bio.SeqRecord import SeqRecord

ROOT = Path(__file__).resolve().parents[1]
DATA = Path("examples/data")
RUN = Path("runs/demo")
PROTEINS, SCORES, CURVE = (RUN.with_name(f"demo-{name}") for name in ("proteins.fasta", "scores.tsv", "loss.png"))
UNIFORM = 20.0  # perplexity of guessing among the twenty residues
# At most this fraction of the other perplexities: a model that knows only the composition does not get there.
LEARNT = 0.9

NEXT = f"""\
What to type next (after `source .venv/bin/activate`):

  protperf --help                                        every command
  protperf info {RUN}                                what this model is and what it was trained on
  protperf score {RUN} your.fasta.gz > scores.tsv    score your own proteins; plain, gz, xz, zst or bz2
  protperf scan {RUN} {DATA}/human_myoglobin.fasta --heatmap scan.png -o scan.tsv
                                                         score every single change of a protein
  protperf train --fasta your.fasta.gz -o runs/mine      train on your own sequences"""


def main() -> int:
    """Train, score, draw; returns 1 if the model cannot tell a globin from noise."""
    os.chdir(ROOT)
    globins = DATA / "globins.fasta.gz"
    protperf("train", "--fasta", globins, "-o", RUN, "--time", "150s", "--force")
    SeqIO.write(proteins(), PROTEINS, "fasta")
    protperf("score", RUN, PROTEINS, "-o", SCORES)
    with SCORES.open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    learnt = report(rows)
    protperf("info", RUN, "--plot", CURVE)
    print(f"\nLoss curve: {CURVE}\n\n{NEXT}")
    return 0 if learnt else 1


def protperf(*arguments: object) -> None:
    """Run the command of the environment that runs this script; exit with its code if it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ protperf {shlex.join(words)}", flush=True)
    code = subprocess.run([Path(sys.executable).with_name("protperf"), *words], check=False).returncode
    if code:
        sys.exit(code if code > 0 else 128 - code)


def proteins() -> list[SeqRecord]:
    """Human myoglobin, its residues in a random order, and an enzyme that is not a globin."""
    myoglobin = SeqIO.read(DATA / "human_myoglobin.fasta", "fasta")
    residues = list(myoglobin.seq)
    random.Random(0).shuffle(residues)
    shuffled = SeqRecord(
        type(myoglobin.seq)("".join(residues)), id="shuffled", description="the same residues, shuffled"
    )
    return [myoglobin, shuffled, SeqIO.read(DATA / "unrelated_dhfr.fasta", "fasta")]


def report(rows: list[dict[str, str]]) -> bool:
    """Print the table and what it means; returns whether myoglobin is clearly the most likely of the three."""
    what = ["human myoglobin", "the same residues, shuffled", "E. coli dihydrofolate reductase"]
    print(f"\n{'protein':<34}{'residues':>9}{'nats/residue':>14}{'perplexity':>12}")
    for name, row in zip(what, rows, strict=True):
        print(f"{name:<34}{row['len']:>9}{float(row['ll_per_residue']):>14.3f}{float(row['ppl']):>12.2f}")
    globin, *others = (float(row["ppl"]) for row in rows)
    learnt = globin < LEARNT * min(others)
    if learnt:
        print(
            "\nPerplexity is the number of residues the model wavers between at each position; guessing gives"
            f"\n{UNIFORM:.0f}. It wavers between {globin:.1f} in myoglobin and {others[0]:.1f} where the same residues"
            " are shuffled: it has\nlearnt what a globin looks like, from relatives that are at most 54 % identical."
        )
    else:
        print(
            "\nThe model does not tell myoglobin from the other two yet. Was the machine busy with something else?"
            f"\n{RUN}/metrics.jsonl says how many steps it got; some hundred are needed.",
            file=sys.stderr,
        )
    return learnt


if __name__ == "__main__":
    sys.exit(main())
