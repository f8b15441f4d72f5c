"""Time reading FASTA into tokens, next to what Python users do otherwise and to inflating alone, in one run.

The proteins are random, 60 letters per line; every method must give the same tokens before it is timed. Rates are of
letters, so that compressed files compare with plain ones.
"""

import argparse
import gzip
import sys
import tempfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import report
from Bio import SeqIO

from protperf import io

LETTERS = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)
LENGTH, LINE = 360, 60
CODES = np.zeros(256, np.uint8)
CODES[np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8)] = io.encode("ACDEFGHIKLMNPQRSTVWY")[0]


def proteins(count: int) -> bytes:
    """Records of random proteins."""
    letters = LETTERS[np.random.default_rng(1).integers(0, len(LETTERS), (count, LENGTH))]
    lines = letters.reshape(count, LENGTH // LINE, LINE)
    bodies = (b"\n".join(line.tobytes() for line in record) for record in lines)
    return b"".join(b">protein_%d\n%b\n" % (i, body) for i, body in enumerate(bodies))


def ours(path: Path) -> np.ndarray:
    return np.concatenate([batch.tokens for batch in io.read_tokens(path)])


def biopython(path: Path) -> np.ndarray:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="ascii") as stream:
        return np.concatenate([CODES[np.frombuffer(bytes(r.seq), np.uint8)] for r in SeqIO.parse(stream, "fasta")])


def by_hand(path: Path) -> np.ndarray:
    """As a script would: whole file, split at headers, a table of codes."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    bodies = (record.partition(b"\n")[2].replace(b"\n", b"") for record in data.split(b">")[1:])
    return CODES[np.frombuffer(b"".join(bodies), np.uint8)]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the proteins")
    parser.add_argument("--proteins", type=int, default=300_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="per method and file")
    arguments = parser.parse_args()
    methods: dict[str, Callable[[Path], np.ndarray]] = {"protperf": ours, "Biopython": biopython, "by hand": by_hand}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = proteins(arguments.proteins // (10 if arguments.quick else 1))
        plain, packed = Path(folder, "proteins.fa"), Path(folder, "proteins.fa.gz")
        plain.write_bytes(data)
        packed.write_bytes(gzip.compress(data, 6))
        for path in (plain, packed):
            found = {name: method(path) for name, method in methods.items()}
            if not all(np.array_equal(tokens, found["protperf"]) for tokens in found.values()):
                print(f"no figures, because the tokens of {path.name} differ", file=sys.stderr)
                return 1
            calls: dict[str, Callable[[], object]] = {name: partial(call, path) for name, call in methods.items()}
            if path == packed:
                calls["inflating alone"] = lambda: zlib.decompress(packed.read_bytes(), wbits=31)
            for name, timing in report.interleave(calls, seconds=arguments.seconds, max_turns=15).items():
                rate = len(data) / 1e6
                rows.append([path.name, name, f"{1e3 * rate / timing.median:,.0f}", f"{1e3 * rate / timing.best:,.0f}"])
    print(f"{report.describe_machine()}; MB/s of text, {len(data) / 1e6:,.0f} MB\n")
    print(report.markdown(["file", "method", "median", "best"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
