"""A request for scores of variants: the options that a command line or a program gives, as what `VariantsJob` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protperf.lm.options import instance
from protperf.lm.tables.options import TableOptions
from protperf.lm.variants.options import OffsetOptions, StrategyOptions, VariantOptions

if TYPE_CHECKING:
    from protperf.lm.variants.job import VariantsJob
    from protperf.lm.watch import Watch


@dataclass(frozen=True, slots=True)
class VariantsRequest:
    """How variants are read, scored and written, and how the wild type is numbered."""

    options: VariantOptions
    strategy: StrategyOptions
    table: TableOptions
    offset: int

    def job(self, given: str | Sequence[str], wild_type: Any, watch: Watch | None = None) -> VariantsJob:
        """The job over some variants of a wild type, checked; arguments and errors are those of `VariantsJob` and
        `read_wild_type`.
        """
        # NumPy comes with it, and mistakes that can be seen without it are reported at once.
        from protperf.lm.variants.job import VariantsJob
        from protperf.lm.variants.wild_type import read_wild_type

        protein = read_wild_type(wild_type, self.offset)
        return VariantsJob(given, protein, self.options, self.strategy, self.table, watch)


def read_request(given: Mapping[str, Any]) -> VariantsRequest:
    """The request that options make.

    Args:
        given: by field, the options that were named; others may be among them.

    Raises:
        ConfigError: options that are out of range or exclude each other.
    """
    options, strategy = instance(VariantOptions, given), instance(StrategyOptions, given)
    return VariantsRequest(options, strategy, instance(TableOptions, given), instance(OffsetOptions, given).offset)
