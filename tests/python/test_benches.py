"""The benches measure what they say: tiny cases, without the rates of the machine, which take a build."""

import json
import subprocess
import sys
from pathlib import Path

from machine import HANG_S

BENCHES = Path(__file__).parents[2] / "benches"

CODE = """
import json
from attention import Case, OURS, measure, row, takes_part
import peers

short, case = (Case(head_dim=16, num_features=32, causal=CAUSAL, backward=True, length=length) for length in (128, 512))
names = [OURS, "protperf bf16", *peers.EXACT, "linear", "linear bf16"]
found = measure(case, names, 1, 0.01)
longer = Case(16, 32, CAUSAL, True, 4096)
print(json.dumps({
    "errors": {name: each.error for name, each in measure(short, names, 1, 0.01).items()},
    "peaks": {name: each.peak for name, each in found.items()},
    "row": row(case, 1.0, found),
    "parts": [takes_part("SDPA", longer, found), takes_part("SDPA", longer, {OURS: found[OURS]})],
}))
"""


def test_attention_is_compared_with_f64_and_its_memory_counted() -> None:
    for causal in (False, True):
        command = [sys.executable, "-W", "error", "-c", CODE.replace("CAUSAL", str(causal))]
        done = subprocess.run(command, cwd=BENCHES, capture_output=True, text=True, timeout=HANG_S, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout)
        errors, peaks = found["errors"], found["peaks"]
        assert errors["protperf"] < 1e-5
        assert errors["linear"] < 1e-3
        assert errors["SDPA"] < 1e-5
        # Rounded inputs are seen in the errors, so that errors of this size would be seen in ours.
        assert all(1e-4 < errors[name] < 0.1 for name in ("protperf bf16", "SDPA bf16", "linear bf16")), errors
        # Output and three gradients, 8 heads of 512 positions of 16 floats; a fourth may be kept from the call before.
        assert min(peaks["protperf"], peaks["linear"]) >= 3 * 8 * 512 * 16 * 4
        assert found["parts"] == [True, False]


def test_readers_of_fasta_give_the_same_tokens() -> None:
    command = [sys.executable, "-W", "error", "reading.py", "--proteins", "50", "--seconds", "0.01"]
    done = subprocess.run(command, cwd=BENCHES, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("protperf |") == 2
