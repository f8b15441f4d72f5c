"""The recorded digests of the kernels are those of this checkout, so that no commit leaves a stale record behind."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import protperf

PIN = Path(__file__).resolve().parents[1] / "pin"
WORDS = ["--only", "kernels", "--types", "f32", "--threads", "1"]


def record() -> dict[str, str]:
    return dict(line.split("\t") for line in (PIN / "kernels.tsv").read_text(encoding="utf-8").splitlines())


@pytest.mark.skipif(
    not set(protperf.build_info()["isas"]) <= {line.partition(" ")[0] for line in record()},
    reason="no digests are on record for this processor",
)
def test_the_digests_of_this_machine_are_those_on_record() -> None:
    """On every instruction set; `make pin` also has the other types, and the number of threads."""
    found = subprocess.run([sys.executable, str(PIN / "run.py"), *WORDS], capture_output=True, text=True, check=False)
    text = f"{found.stdout}{found.stderr}\nif it is meant: python tests/pin/run.py --only kernels --write-kernels"
    assert found.returncode == 0, text
    sets = set(protperf.build_info()["isas"])
    if "avx2" in sets and hasattr(protperf._native, "_rehearse_panic"):
        # The build of a checkout emulates it where the processor lacks it.
        sets.add("avx512")
    count, names = re.search(r"(\d+) digests of kernels \((.*?)\)", found.stdout).groups()
    assert set(names.split(", ")) == sets
    assert int(count) == sum(name.endswith(" f32") for name in record()) // 3 * len(sets)


def test_the_record_has_every_map_on_every_instruction_set_alike() -> None:
    names: dict[str, set[str]] = {}
    for line in record():
        isa, _, name = line.partition(" ")
        if not name.endswith(" amx"):
            names.setdefault(isa, set()).add(name)
    assert set(names) == {"scalar", "avx2", "avx512"}
    assert names["scalar"] == names["avx2"] == names["avx512"]
    assert {name.split()[0] for name in names["scalar"]} == {*protperf.feature_maps(), "log-linear", "exact", "block"}
