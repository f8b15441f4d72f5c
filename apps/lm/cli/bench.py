"""`protperf bench`: how fast this machine trains and scores, by length, and how much memory that takes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from protperf.lm.cli import common, working
from protperf.lm.options import check, instance, option, pick
from protperf.lm.shared_options import LoadOptions
from protperf.lm.timing.options import BenchOptions, BenchRow


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BenchOutput:
    """How the rows are printed."""

    as_json: bool = option(False, "Print JSON, with what is known of this machine.", flag="--json")

    def __post_init__(self) -> None:
        check(self)


GROUPS = {
    "network": pick(BenchOptions, "model", "size", "own"),
    "measurement": pick(BenchOptions, "lengths", "tasks", "repeats"),
    "output": pick(BenchOutput),
    "computation": [*pick(working.ThreadOptions), *pick(LoadOptions, "device", "engine")],
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf bench
protperf bench runs/mine --lengths 300,3000,30000 --task score
protperf bench --size tiny --device cpu --json > machine.json
"""


def run(given: dict[str, Any]) -> int:
    """Print the rows; returns the exit code."""
    options, output = instance(BenchOptions, given), instance(BenchOutput, given)
    messages, loading = instance(common.MessageOptions, given), instance(LoadOptions, given)
    from protperf.lm.cli.progress import CommandWatch
    from protperf.lm.timing.job import measure

    num_threads = working.set_threads(instance(working.ThreadOptions, given).threads)
    common.say_all(GROUPS, [common.environment(num_threads, "float32", loading.device)] if messages.verbose else [])
    common.raise_on_signal()
    rows = measure(options, loading, CommandWatch(GROUPS, messages.quiet))
    if output.as_json:
        from protperf import build_info

        machine = {name: build_info()[name] for name in ("version", "target", "isa", "num_threads")}
        print(json.dumps({**machine, "rows": [_finite(row) for row in rows]}, indent=1))
        return 0
    print("\t".join(field.name for field in dataclasses.fields(BenchRow)))
    for row in rows:
        values = dataclasses.asdict(row).values()
        print("\t".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values), flush=True)
    return 0


def _finite(row: BenchRow) -> dict[str, Any]:
    """A row for JSON, which has no NaN."""
    return {name: None if value != value else value for name, value in dataclasses.asdict(row).items()}
