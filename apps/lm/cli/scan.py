"""`protperf scan`: the scores of every single change of a protein, as a table and as pictures."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from protperf.lm.cli import asking, common, working
from protperf.lm.options import REQUIRED, check, instance, option, pick
from protperf.lm.scan.options import PictureOptions, RegionOptions
from protperf.lm.shared_options import LoadOptions
from protperf.lm.tables.options import TableOptions
from protperf.lm.variants.options import ModelOptions, OffsetOptions, StrategyOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScanCommand:
    """What `scan` takes besides the options of models, changes, loading and writing."""

    wt: str = option(REQUIRED, "Wild type: a file with one record, or its residues.", positional=True, unit="FASTA")

    def __post_init__(self) -> None:
        check(self)


GROUPS = {
    "input": [
        *pick(ModelOptions, "model"),
        *pick(ScanCommand, "wt"),
        *pick(OffsetOptions),
        *pick(RegionOptions),
    ],
    "score": [*pick(StrategyOptions, "strategy", "direction", "prior", "conservation"), *pick(ModelOptions, "also")],
    "output": [*pick(PictureOptions), *pick(TableOptions)],
    "computation": [*pick(StrategyOptions, "batch_tokens", "deterministic"), *asking.COMPUTATION],
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf scan runs/tem1 tem1.fa --heatmap tem1.png --report tem1.html -o scan.tsv
protperf scan runs/tem1 tem1.fa --region 24-286 --matrix > matrix.tsv
protperf scan runs/tem1 tem1.fa --structure 1btl.pdb --structure-out coloured.pdb -o scan.tsv
protperf scan runs/tem1 domain.fa --offset 24 --dels --strategy full -o scan.parquet
"""


def run(given: dict[str, Any]) -> int:
    """Write the table and the pictures of a scan; returns the exit code."""
    started = time.monotonic()
    command, messages = instance(ScanCommand, given), instance(common.MessageOptions, given)
    load, models, offset = instance(LoadOptions, given), instance(ModelOptions, given), instance(OffsetOptions, given)
    region, strategy = instance(RegionOptions, given), instance(StrategyOptions, given)
    table, pictures = instance(TableOptions, given), instance(PictureOptions, given)
    asking.check_models(models.paths)
    from protperf.lm.cli.progress import CommandWatch
    from protperf.lm.scan.job import ScanJob
    from protperf.lm.source import is_path
    from protperf.lm.variants.wild_type import read_wild_type

    inputs = [command.wt] if is_path(command.wt) else []
    watch, threads = CommandWatch(GROUPS, messages.quiet), instance(working.ThreadOptions, given).threads
    job = ScanJob(read_wild_type(command.wt, offset.offset), region, strategy, table, pictures, inputs, watch)
    # The mistakes that can be seen without torch have been reported by now.
    loaded = asking.load_models(GROUPS, models.paths, load, threads, messages)
    prepared = job.prepare(loaded, load.dtype, watch)
    common.raise_on_signal()
    scan, coloured = job.write(prepared, watch)
    done = f"scanned {len(scan.positions):,} positions in {common.spent(started)}"
    common.say_all(GROUPS, [done] if messages.verbose else [])
    common.say_all(GROUPS, [] if coloured is None or messages.quiet else coloured.notes())
    return 0
