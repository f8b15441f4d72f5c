"""`protperf variants`: the rows of a table of variants, each with its score."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from protperf.lm.cli import asking, common
from protperf.lm.cli.commands import EXIT_REJECTED
from protperf.lm.options import REQUIRED, check, instance, option, pick
from protperf.lm.shared_options import LoadOptions
from protperf.lm.tables.options import TableOptions
from protperf.lm.variants.options import ModelOptions, OffsetOptions, StrategyOptions, VariantOptions, WildTypeOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VariantsCommand:
    """What `variants` takes besides the options of models, variants, loading and writing."""

    given: tuple[str, ...] = option(
        REQUIRED,
        "A CSV or TSV table, or a list of one variant per line, plain or compressed, - for standard input; or variants "
        "themselves: A24G, A24G:D50N, p.Ala24Gly, A24_G26del, K30_L31insGS, A24_G26delinsKT, WT.",
        positional=True, unit="VARIANTS...",
    )  # fmt: skip
    allow_rejects: bool = option(False, "Exit with 0 instead of 5 if variants were left without a score.")

    def __post_init__(self) -> None:
        check(self)


GROUPS = {
    "input": [
        *pick(ModelOptions, "model"),
        *pick(VariantsCommand, "given"),
        *pick(WildTypeOptions),
        *pick(OffsetOptions),
        *pick(VariantOptions, "col", "seq_col", "invalid"),
        *pick(VariantsCommand, "allow_rejects"),
    ],
    "score": [*pick(StrategyOptions, "strategy", "direction", "prior", "conservation"), *pick(ModelOptions, "also")],
    "comparison": pick(VariantOptions, "label_col", "bin_col", "resamples", "seed"),
    "output": [*pick(VariantOptions, "score_col", "per_model"), *pick(TableOptions)],
    "computation": [
        *pick(StrategyOptions, "batch_tokens", "deterministic"),
        *pick(common.ThreadOptions),
        *pick(LoadOptions),
    ],
    "messages": pick(common.MessageOptions),
}
EXAMPLES = """
protperf variants runs/tem1 A24G p.Asp50Asn A24_G26del --wt tem1.fa
protperf variants runs/tem1 dms.csv --wt tem1.fa --label-col DMS_score -o scored.csv
protperf variants runs/tem1 dms.csv --wt tem1.fa --prior family.fa.gz -o mixed.csv
protperf variants runs/tem1 domain.csv --wt domain.fa --offset 24 > scored.tsv
protperf variants runs/a dms.csv --wt tem1.fa --also runs/b --also runs/c --per-model
"""


def run(given: dict[str, Any]) -> int:
    """Write the table of scored variants; returns the exit code."""
    started = time.monotonic()
    command, messages = instance(VariantsCommand, given), instance(common.MessageOptions, given)
    load, wild, models = instance(LoadOptions, given), instance(WildTypeOptions, given), instance(ModelOptions, given)
    options, strategy = instance(VariantOptions, given), instance(StrategyOptions, given)
    table, threads = instance(TableOptions, given), instance(common.ThreadOptions, given).threads
    asking.check_models(models.paths)
    from protperf.lm.cli.progress import CommandWatch
    from protperf.lm.variants.job import VariantsJob
    from protperf.lm.variants.reader import input_of
    from protperf.lm.variants.wild_type import read_wild_type

    watch = CommandWatch(GROUPS, messages.quiet)
    protein = read_wild_type(wild.wt, instance(OffsetOptions, given).offset)
    job = VariantsJob(input_of(command.given), protein, options, strategy, table, watch)
    # The mistakes that can be seen without torch have been reported by now.
    loaded = asking.load_models(GROUPS, models.paths, load, threads, messages)
    prepared = job.prepare(loaded, load.dtype, watch)
    common.raise_on_signal()
    summary = job.write(prepared, watch)
    done = f"scored {summary.num_variants:,} variants in {common.spent(started)}"
    common.say_all(GROUPS, [done] if messages.verbose else [])
    common.say_all(GROUPS, () if messages.quiet else summary.notes, "note: ")
    common.say_all(GROUPS, summary.warnings, "warning: ")
    common.say_all(GROUPS, [] if summary.metrics is None else [str(summary.metrics)])
    return EXIT_REJECTED if summary.num_invalid and not command.allow_rejects else 0
