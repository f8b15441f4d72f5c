"""`protperf variants`: the rows of a table of variants, each with its score."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from protperf.lm.cli import asking, common, working
from protperf.lm.cli.commands import EXIT_REJECTED
from protperf.lm.options import REQUIRED, check, instance, option, pick
from protperf.lm.shared_options import LoadOptions
from protperf.lm.tables.options import TableOptions
from protperf.lm.variants.options import ModelOptions, OffsetOptions, StrategyOptions, VariantOptions, WildTypeOptions
from protperf.lm.variants.request import read_request


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
    "computation": [*pick(StrategyOptions, "batch_tokens", "deterministic"), *asking.COMPUTATION],
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
    request, threads = read_request(given), instance(working.ThreadOptions, given).threads
    asking.check_models(models.paths)
    from protperf.lm.cli.progress import CommandWatch
    from protperf.lm.variants.reader import input_of

    watch = CommandWatch(GROUPS, messages.quiet)
    job = request.job(input_of(command.given), wild.wt, watch)
    # The mistakes that can be seen without torch have been reported by now.
    loaded = asking.load_models(GROUPS, models.paths, load, threads, messages)
    prepared = job.prepare(loaded, load.dtype, watch)
    common.raise_on_signal()
    summary = job.write(prepared, watch)
    asking.conclude(GROUPS, messages, summary, started)
    return EXIT_REJECTED if summary.num_rejected and not command.allow_rejects else 0
