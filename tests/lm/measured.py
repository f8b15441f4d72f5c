"""A program that reads checkpoints as `score` and as `train --resume` do, and measures what each refusal costs.

It takes lines of JSON, a run directory and its sequences each, and answers each with a line: the errors, the processor
seconds, and by how many bytes the memory in use rose at its highest. It always goes on to the next.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from protperf.lm.loading import load_run
from protperf.lm.training.resume import stored_choices
from protperf.lm.training.run import train_run


def memory(field: str) -> int:
    """Bytes of a field of this process's status."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def measured(action: Callable[[], object]) -> dict[str, Any]:
    gc.collect()
    # Sets the highest memory in use to the present one.
    Path("/proc/self/clear_refs").write_text("5")
    memory_before, before = memory("VmRSS"), time.process_time()
    error: BaseException | None = None
    try:
        action()
    except BaseException as raised:
        error = raised
    cost = {"cpu_s": time.process_time() - before, "bytes": memory("VmHWM") - memory_before}
    if error is None:
        return {"class": None, **cost}
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return {"class": kinds, "text": str(error), "file": str(getattr(error, "filename", None) or ""), **cost}


def resumed(run: Path, fasta: Path) -> list[str]:
    messages: list[str] = []
    config, options = stored_choices(run, {})
    train_run(fasta, run, config, options, resume=True, warn=messages.append)
    return messages


def main() -> None:
    torch.set_num_threads(1)
    # Collecting garbage takes longer than refusing a file where torch's own objects are looked through each time.
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        run, fasta = Path(job["run"]), Path(job["fasta"])
        answers = [measured(lambda run=run: load_run(run)), measured(lambda run=run, fasta=fasta: resumed(run, fasta))]  # type: ignore[misc]
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
