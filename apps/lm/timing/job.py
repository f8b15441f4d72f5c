"""Time a network by task, attention and length: what `protperf bench` runs, and Python's `lm.bench`."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protperf.errors import ConfigError, Error
from protperf.lm.device import DEVICES, check_device
from protperf.lm.model.config import ModelConfig
from protperf.lm.options import from_keywords, instance, pick, takes
from protperf.lm.shared_options import LoadOptions
from protperf.lm.storage import checkpoint, manifest
from protperf.lm.tables.table import Table
from protperf.lm.timing.options import TASKS, BenchOptions, BenchRow, read_lengths
from protperf.lm.watch import Watch

LOADING = pick(LoadOptions, "device", "engine")
"""Where and by what is computed."""
_CHILD = "protperf.lm.timing.child"


@takes(pick(BenchOptions), LOADING)
def bench(**options: Any) -> Table[BenchRow]:
    """How fast a network scores and trains here, by length, next to the same one with exact attention.

    Args:
        options: those below.

    Raises:
        ConfigError, CheckpointError: as on the command line.
    """
    given = from_keywords(options, [*pick(BenchOptions), *LOADING])
    return Table(BenchRow, list(measure(instance(BenchOptions, given), instance(LoadOptions, given))))


def measure(options: BenchOptions, loading: LoadOptions, watch: Watch | None = None) -> Iterator[BenchRow]:
    """The rows, as they are measured, each in a process of its own with the threads that this one would have.

    Raises:
        ConfigError: a model that is not a run; CheckpointError: it cannot be read; DeviceError: a device that does not
        train; Error: a measurement failed.
    """
    watch = watch or Watch()
    config = ModelConfig.from_size(options.size)
    if options.model is not None:
        config = _config_of(options.model)
    others = [] if options.own or config.attention == "exact" else ["exact"]
    tasks = _tasks(options, loading.device)
    lengths = read_lengths(options.lengths)
    shared = {"repeats": options.repeats, "device": loading.device, "engine": loading.engine}
    total = len(tasks) * len(lengths) * (1 + len(others))
    with tempfile.TemporaryDirectory() as folder, watch.working("timing", "rows", total, "") as stage:
        for attention in [config.attention, *others]:
            chosen = dataclasses.replace(config, attention=attention)
            request = {**shared, "config": chosen.to_mapping(), "run": str(Path(folder) / attention)}
            if options.model is not None and attention == config.attention:
                request["run"] = str(options.model)
            elif "score" in tasks:
                _ask({**request, "task": "prepare"})
            for task in tasks:
                for length in lengths:
                    yield _row(attention, {**request, "task": task, "length": length}, watch)
                    stage.update(1)


def _tasks(options: BenchOptions, device: str) -> list[str]:
    """What is timed: what was named, or all that the device does.

    Raises:
        DeviceError: training was named, and the device does not train.
    """
    if "train" in options.tasks:
        check_device(device)
    known = TASKS if device in DEVICES else ("score",)
    return [task for task in TASKS if task in (options.tasks or known)]


def _config_of(model: Path) -> ModelConfig:
    from protperf.lm.baselines.manifest import is_baseline
    from protperf.lm.model.esm_folder import is_esm_folder

    if is_baseline(model) or is_esm_folder(model):
        raise ConfigError(f"{model}: is not the run of a training; name one, or a size")
    return checkpoint.read(model, manifest.read_config)


def _row(attention: str, request: dict[str, Any], watch: Watch) -> BenchRow:
    where = (request["task"], attention, request["length"])
    try:
        found = _ask(request)
    except MemoryError:
        watch.warn(f"{request['task']}, {attention} attention, {request['length']} residues: out of memory")
        return BenchRow(*where, 0, math.nan, math.nan, math.nan, math.nan)
    speed = found["tokens"] / found["median_s"]
    return BenchRow(*where, found["tokens"], found["min_s"], found["median_s"], speed, found["memory_mb"])


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of a process of its own.

    Raises:
        MemoryError: it ran out of memory, or the system ended it; Error: it failed.
    """
    words = [sys.executable, "-m", _CHILD, json.dumps(request)]
    done = subprocess.run(words, capture_output=True, check=False, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode == -9 or "MemoryError" in reason or "allocate memory" in reason:
        raise MemoryError(reason)
    raise Error(f"timing {request['task']} failed: {reason}")
