"""Scores of variants, streamed into a table: what the command `variants` runs, and Python's `Model.variants`.

A job is checked when it is made, before a model is loaded: the wild type, and every row of an input that can be read
twice. `prepare` finds out what decides the table, and `write` writes it. Measured values are collected on the way and
compared with the scores at the end.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protperf.errors import DataError
from protperf.lm.scoring.estimate import Work as Passes
from protperf.lm.scoring.estimate import estimate_pll
from protperf.lm.tables.destination import check_inputs, is_file
from protperf.lm.tables.fill import fill, fingerprint, input_digests
from protperf.lm.tables.formats import Encoder, choose_format
from protperf.lm.tables.options import TableOptions
from protperf.lm.tables.read_back import read_numbers
from protperf.lm.tables.sink import Sink, open_sink
from protperf.lm.tables.table import Table
from protperf.lm.variants.metrics import Metrics, compare
from protperf.lm.variants.options import StrategyOptions, VariantOptions
from protperf.lm.variants.prior import advise_prior, read_prior
from protperf.lm.variants.reader import Item, VariantReader, Work, identify, open_rows
from protperf.lm.variants.rows import Row, RowMaker, scored
from protperf.lm.variants.score import Ensemble
from protperf.lm.variants.wild_type import WildType
from protperf.lm.watch import Stage, Watch
from protperf.message import Message

if TYPE_CHECKING:
    from protperf.lm.engine import Engine
    from protperf.lm.loading import LoadedModel

_WORTH_ESTIMATING = 100_000
"""Residues that are read in a moment."""


@dataclass(frozen=True, slots=True)
class VariantsSummary:
    """What came of a job.

    Attributes:
        num_variants: rows of the input; `num_rejected` of them have no score.
        metrics: agreement with measured values; None if no column of them was named.
    """

    num_variants: int
    num_rejected: int
    metrics: Metrics | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    def facts(self) -> list[str]:
        """What was read, in words."""
        return [f"scored {self.num_variants:,} variants"]

    def figures(self) -> list[str]:
        """Agreement with measured values, in words."""
        return [] if self.metrics is None else [str(self.metrics)]


class VariantTable(Table[Row]):
    """A table of variants; `metrics` is their agreement with measured values, None if there are none."""

    metrics: Metrics | None = None


@dataclass(slots=True)
class _Measured:
    """Measured values of the rows so far, and their scores; NaN until these are known."""

    labels: list[float] = field(default_factory=list)
    positive: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, items: Iterable[Item], scores: Iterable[float]) -> None:
        for item, score in zip(items, scores, strict=True):
            self.labels.append(item.label)
            self.positive.append(item.positive)
            self.scores.append(score)

    def metrics(self, options: VariantOptions, has_classes: bool) -> Metrics:
        classes = self.positive if has_classes else None
        return compare(self.scores, self.labels, classes, resamples=options.resamples, seed=options.seed)


@dataclass(frozen=True, slots=True)
class PreparedVariants:
    """What decides a table: models and strategies, and by name all that its bytes depend on."""

    ensemble: Ensemble
    models: tuple[str, ...]
    fingerprint: dict[str, Any]


class VariantsJob:
    """Score the variants of an input.

    Raises:
        ConfigError: options that exclude each other, or a table that would overwrite an input; DataError: a fault of
        the input, with its place; FileError: an input is missing; MissingPackageError: the format needs a package.
    """

    def __init__(
        self,
        given: str | Sequence[str],
        wild_type: WildType,
        options: VariantOptions,
        strategy: StrategyOptions,
        table: TableOptions,
        watch: Watch | None = None,
    ) -> None:
        """Check all that can be checked without a model.

        Args:
            given: the path of a table or a list, or the variants themselves.
        """
        self._given, self._wild, self._options, self._strategy, self._table = given, wild_type, options, strategy, table
        self._format = choose_format(table.format, table.out)
        check_inputs(table.out, self._paths if strategy.prior is None else [*self._paths, str(strategy.prior)])
        self._work = self._checked(watch or Watch())
        # Last, as it may take minutes.
        self.prior = read_prior(strategy.prior, wild_type, watch)

    def prepare(
        self, models: Sequence[LoadedModel], dtype: str = "float32", watch: Watch | None = None
    ) -> PreparedVariants:
        """Choose the strategies, and take the checksums of the input.

        Raises:
            ConfigError: a strategy that a model was not trained for; DataError: a variant that it has no score for.
        """
        watch = watch or Watch()
        ensemble = self.ensemble([model.engine for model in models])
        if self._work is not None and self._work.indel is not None and self._options.invalid == "error":
            _check(ensemble, self._work.indel)
        for model, scorer in zip(models, ensemble.scorers, strict=True):
            watch.note(f"{model.step.name}, strategy {scorer.name}")
            self._announce(watch, model, scorer.name)
        for text in ensemble.notes():
            watch.note(text)
        if self.prior is None and (advice := advise_prior(models)) is not None:
            watch.note(advice)
        digests = input_digests(self._paths, self._table.out, watch)
        if not self._paths and is_file(self._table.out):
            digests = [hashlib.sha256("\n".join(self._given).encode()).hexdigest()]
        options = {**self._strategy.to_mapping(), **self._options.to_mapping(), "dtype": dtype}
        options |= {"offset": self._wild.offset, **ensemble.facts()}
        options["wild_type_sha256"] = hashlib.sha256(self._wild.tokens.tobytes()).hexdigest()
        # They decide the figures that are printed, and no row.
        del options["resamples"], options["seed"]
        facts = fingerprint_of(models, digests, options)
        return PreparedVariants(ensemble, tuple(model.step.name for model in models), facts)

    def write(self, prepared: PreparedVariants, watch: Watch | None = None) -> VariantsSummary:
        """Write the table.

        Raises:
            ConfigError: rows of an interrupted table that are neither continued nor given up, or a table of something
            else to continue; DataError: the input is at fault; OSError: the table cannot be written.
        """
        watch, table = watch or Watch(), self._table
        reader, maker = self._opened(prepared.ensemble)
        encoder = Encoder(maker.columns, self._format)
        measured = _Measured()
        total = None if self._work is None else self._work.count * len(prepared.ensemble.scorers)
        with watch.working("scoring", "scores", total, "variants") as stage:
            sink = open_sink(
                table.out, encoder, prepared.fingerprint, identify=identify, resume=table.resume, force=table.force
            )
            note, count = self._fill(sink, prepared, reader, maker, measured, stage, watch)
        if note is not None:
            watch.note(f"note: {note}")
        return self._summary(reader, maker, measured, count)

    def ensemble(self, engines: Sequence[Engine]) -> Ensemble:
        """What scores the variants by these models.

        Raises:
            ConfigError: a strategy that a model was not trained for.
        """
        return Ensemble(engines, self._wild, self._strategy, self.prior)

    def table(self, ensemble: Ensemble) -> VariantTable:
        """The rows in memory."""
        reader, maker = self._opened(ensemble)
        rows: list[Row] = []
        measured = _Measured()
        for items, made in scored(ensemble, reader, maker):
            rows += made
            measured.add(items, (row[self._options.score_col] for row in made))
        summary = self._summary(reader, maker, measured, len(rows))
        table = VariantTable(maker.columns, rows, warnings=[*summary.warnings, *summary.notes])
        table.metrics = summary.metrics
        return table

    @property
    def _paths(self) -> list[str]:
        return [self._given] if isinstance(self._given, str) else []

    def _opened(self, ensemble: Ensemble) -> tuple[VariantReader, RowMaker]:
        reader = VariantReader(open_rows(self._given), self._wild, self._options, ensemble.check)
        return reader, RowMaker(reader, ensemble, self._options)

    def _checked(self, watch: Watch) -> Work | None:
        """Read an input that can be read again from start to end; None for any other."""
        if isinstance(self._given, str) and not os.path.isfile(self._given) and os.path.exists(self._given):
            return None
        if self._given == "-":
            return None
        with watch.waiting("checking", " variants") as stage:
            return Work.of(VariantReader(open_rows(self._given), self._wild, self._options), stage.update)

    def _announce(self, watch: Watch, model: LoadedModel, strategy: str) -> None:
        if not watch.takes_notes or self._work is None or strategy not in ("masked", "masked-joint"):
            return
        passes = len(self._work.sites if strategy == "masked" else self._work.sets)
        size = len(self._wild) + 2
        if passes * size > _WORTH_ESTIMATING:
            work = Passes(passes, passes * size, passes * size**2)
            what = "site" if strategy == "masked" else "set of sites"
            text = f"{strategy} reads the wild type once for each mutated {what}"
            watch.note(f"{text}: {estimate_pll(model.engine, work)}")

    def _fill(
        self,
        sink: Sink,
        prepared: PreparedVariants,
        reader: VariantReader,
        maker: RowMaker,
        measured: _Measured,
        stage: Stage,
        watch: Watch,
    ) -> tuple[str | None, int]:
        """Write all rows; returns what there is to say about it, and how many there are."""
        num_models = len(prepared.ensemble.scorers)
        items, done = iter(reader), 0

        def replayed() -> Iterator[Item]:
            nonlocal done
            for item in items:
                stage.skip(num_models)
                measured.add([item], [math.nan])
                done += 1
                yield item

        def batches() -> Iterator[tuple[list[Item], list[Row]]]:
            for batch, rows in scored(prepared.ensemble, items, maker, stage.update):
                measured.add(batch, (row[self._options.score_col] for row in rows))
                yield batch, rows

        def provenance() -> dict[str, Any]:
            facts = {"command": sys.argv, "model": prepared.models, "input": self._given}
            return {**facts, "wild_type": self._wild.id, "without_score": reader.invalid}

        note = fill(sink, replayed(), batches(), stage, watch, provenance)
        if done and self._options.label_col is not None and self._table.out is not None:
            measured.scores[:done] = read_numbers(self._table.out, self._format, self._options.score_col, done)
        return note, len(measured.scores)

    def _summary(self, reader: VariantReader, maker: RowMaker, measured: _Measured, count: int) -> VariantsSummary:
        warnings: list[str] = [] if count else ["no variants"]
        notes = list(reader.notes)
        if reader.invalid:
            text = "{invalid} of {count} variants have no score; the first is {first}"
            warnings.append(Message(text, invalid=reader.invalid, count=count, first=reader.first_invalid))
        notes += [f"the input has a column {name!r} already, which stays as it is" for name in maker.left_out]
        metrics = None
        if self._options.label_col is not None:
            metrics = measured.metrics(self._options, reader.positive is not None)
        return VariantsSummary(count, reader.invalid, metrics, tuple(warnings), tuple(notes))


def fingerprint_of(
    models: Sequence[LoadedModel], digests: Sequence[str | None], options: dict[str, Any]
) -> dict[str, Any]:
    """All that the bytes of a table of several models depend on, by name."""
    each = [fingerprint(model, digests, options, options["deterministic"]) for model in models]
    return {**each[0], "model_sha256": [facts["model_sha256"] for facts in each]}


def _check(ensemble: Ensemble, item: Item) -> None:
    assert item.variant is not None
    try:
        ensemble.check(item.variant)
    except DataError as error:
        raise DataError(Message("{place}: {what}", place=item.place, what=error.args[0])) from error
