"""Pin the bits of a checkout: run it before a refactor and after, and compare.

    python tests/pin/run.py --write before.tsv        # at the first commit
    python tests/pin/run.py --against before.tsv      # at the last one: lists what differs, exit 1 where anything does

The digests of the kernels are functions of the instruction set alone, so `kernels.tsv` next to this file holds them for
every machine, and each run is compared with them too. A commit that changes them on purpose writes them anew with
`--write-kernels` and says which changed and why. A test runs it with `--only kernels --types f32 --threads 1`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import protperf

HERE = Path(__file__).resolve().parent
KERNELS = HERE / "kernels.tsv"
TYPES = ("f32", "f64", "bf16", "f16")

Record = dict[str, str]


def main() -> int:
    """Compute the record of this checkout, write or compare it; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the record")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with a record that was kept")
    parser.add_argument("--write-kernels", action="store_true", help="pin these digests of the kernels")
    parser.add_argument("--only", choices=("kernels", "models"), help="leave the other half out")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], metavar="N", help="numbers of threads whose bits must agree"
    )
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES, help="types of the tensors of kernels")
    chosen = parser.parse_args()
    kernels = {} if chosen.only == "models" else kernel_record([*chosen.types, *map(str, chosen.threads)])
    models = {} if chosen.only == "kernels" else model_record()
    if chosen.write:
        write(chosen.write, kernels | models)
    if chosen.write_kernels:
        write(KERNELS, read(KERNELS) | kernels)
    differing = compare(kernels, read(KERNELS), KERNELS.name)
    if chosen.against:
        differing += compare(kernels | models, read(chosen.against), chosen.against.name)
    sets = ", ".join(dict.fromkeys(name.partition(" ")[0] for name in kernels))
    print(f"{len(kernels)} digests of kernels ({sets}), {len(models)} figures of models; {differing} differ")
    return 1 if differing else 0


def kernel_record(choice: list[str]) -> Record:
    """The digests on every instruction set, two of which compute at once."""

    def on(isa: str) -> Record:
        lines = _lines(HERE / "kernels.py", *choice, env={"PROTPERF_ISA": isa})
        return {f"{isa} {name}": value for name, value in lines.items()}

    with ThreadPoolExecutor(2) as pool:
        return {name: value for lines in pool.map(on, instruction_sets()) for name, value in lines.items()}


def instruction_sets() -> list[str]:
    """Those of this machine, the slowest first, and AVX-512 where a build of a checkout emulates it."""
    own = list(protperf.build_info()["isas"])
    if "avx512" in own:
        return own
    asked = [sys.executable, "-c", "import protperf; protperf.build_info()"]
    found = subprocess.run(asked, env=os.environ | {"PROTPERF_ISA": "avx512"}, capture_output=True, check=False)
    return own if found.returncode else [own[0], "avx512", *own[1:]]


def model_record() -> Record:
    """The losses and scores of small models."""
    with tempfile.TemporaryDirectory() as work:
        return _lines(HERE / "models.py", work, env={"PROTPERF_NUM_THREADS": "2"})


def _lines(script: Path, *words: str, env: Record) -> Record:
    run = [sys.executable, str(script), *words]
    found = subprocess.run(run, env=os.environ | env, stdout=subprocess.PIPE, text=True, check=True)
    return dict(line.split("\t") for line in found.stdout.splitlines())


def compare(found: Record, kept: Record, source: str) -> int:
    """Print what differs from a record, name by name, and what the record does not hold; how many those are."""
    names = [name for name in found if found[name] != kept.get(name)]
    for name in names:
        print(f"{name}: {found[name][:16]}, {source} has {kept.get(name, 'no such line')[:16]}")
    return len(names)


def read(path: Path) -> Record:
    """A record from its file; an empty one where there is none."""
    return dict(line.split("\t") for line in path.read_text().splitlines()) if path.exists() else {}


def write(path: Path, record: Record) -> None:
    """Write a record, sorted by name."""
    path.write_text("".join(f"{name}\t{value}\n" for name, value in sorted(record.items())))


if __name__ == "__main__":
    sys.exit(main())
