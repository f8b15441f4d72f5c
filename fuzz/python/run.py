"""Fuzz the readers of files in Python, guided by the branches that each input takes (atheris, based on libFuzzer).

    python fuzz/python/run.py SECONDS [TARGET...]

Each target runs in a process of its own and starts from its corpus. A finding is written to fuzz/findings/ and ends
the run with exit code 1; `python fuzz/python/run.py TARGET FILE` runs one input again.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FINDINGS = HERE.parent / "findings"
MAX_BYTES = {"manifest": 4096, "config": 1024, "size": 1024, "tensors": 4096, "journal": 2048, "corpus": 512}
MEMORY_MB = 1024


def main(words: list[str]) -> int:
    """Run every target, one after the other, and print a line for each."""
    if len(words) == 2 and words[0] in MAX_BYTES:
        return again(*words)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed; it has wheels for Linux only: see requirements/fuzz.txt", file=sys.stderr)
        return 2
    seconds, names = int(words[0]), words[1:] or list(MAX_BYTES)
    print(f"{'target':<12}{'executions':>12}{'per second':>11}{'corpus':>9}{'branches':>10}  failures")
    return max([fuzz(name, seconds) for name in names])


def fuzz(name: str, seconds: int) -> int:
    """Run one target for some seconds, in a process of its own: libFuzzer ends the process that it runs in."""
    FINDINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as grown:
        words = [
            *(sys.executable, __file__, "--worker", name, grown, HERE.parent / "corpus" / name),
            *(f"-max_total_time={seconds}", f"-max_len={MAX_BYTES[name]}", f"-rss_limit_mb={MEMORY_MB}"),
            *("-timeout=10", "-seed=1", "-print_final_stats=1", f"-artifact_prefix={FINDINGS}/{name}-"),
            f"-dict={HERE / 'words.dict'}",
        ]
        run = subprocess.run([str(word) for word in words], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    executions = int(figure(r"stat::number_of_executed_units:\s*(\d+)", run.stderr))
    corpus, branches = figure(r".*corp: (\d+)", run.stderr), figure(r".*ft: (\d+)", run.stderr)
    rate = executions // max(1, seconds)
    print(f"{name:<12}{executions:>12,}{rate:>11,}{corpus:>9}{branches:>10}  {int(run.returncode != 0)}", flush=True)
    if run.returncode:
        messages = [line for line in run.stderr.splitlines() if not line.startswith(("#", "INFO", "WARNING", "0x"))]
        print("\n".join(messages[-60:]), file=sys.stderr)
    return int(run.returncode != 0)


def figure(pattern: str, text: str) -> str:
    """The number in the last match of a pattern."""
    found = re.findall(pattern, text)
    return found[-1] if found else "0"


def again(name: str, path: str) -> int:
    """Run the target on one file."""
    from targets import TARGETS

    TARGETS[name](Path(path).read_bytes())
    print(f"{name}: no failure")
    return 0


def worker(name: str, words: list[str]) -> None:
    """Start libFuzzer; does not return."""
    import atheris

    with atheris.instrument_imports(include=["protperf.lm", "json", "tomllib"]):
        import targets
    atheris.Setup([sys.argv[0], *words], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:]:
        sys.exit(main(sys.argv[1:]))
    else:
        sys.exit(str(__doc__))
