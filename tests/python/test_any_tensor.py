"""Any tensor that torch or NumPy can make: the bits of the contiguous call, or a refusal that names the argument."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GENERATOR = Path(__file__).with_name("any_tensor.py")


def run(cases, seed, trace):
    """Counts over all cases, in a process that may die; what ended it counts as a crash, and the rest still runs."""
    total = {"equal": 0, "refused": 0, "wrong": [], "crashed": []}
    first = 0
    while first < cases:
        command = [sys.executable, GENERATOR, "--cases", cases, "--seed", seed, "--first", first, "--trace", trace]
        ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            found = json.loads(ended.stdout)
            return {key: total[key] + found.get(key, type(total[key])()) for key in total}
        at = int(trace.read_text())
        total["crashed"].append(f"{at}: {ended.returncode}: {ended.stderr[-2000:]}")
        assert len(total["crashed"]) < 10, total
        first = at + 1
    return total


def hold(total, cases):
    assert (total["wrong"], total["crashed"]) == ([], [])
    # Cases before a crash are not counted, so none may be missing.
    assert total["equal"] + total["refused"] == cases
    assert total["refused"] > cases / 5
    print(f"{cases} cases: {total['equal']} equal bits, {total['refused']} refused, 0 wrong, 0 crashes")


def test_generated_tensors_give_the_contiguous_bits_or_are_refused_by_name(tmp_path):
    hold(run(2_000, 1, tmp_path / "trace"), 2_000)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_twenty_thousand_generated_tensors(tmp_path, seed):
    hold(run(20_000, seed, tmp_path / "trace"), 20_000)
