"""A scan, streamed into a table: what the command `scan` runs, and Python's `Model.scan`.

All changes of a position are scored together, and positions are read in batches: memory does not grow with the number
of changes. A picture is made at the end, from the scores of this run and, where a table was continued, from its rows.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from protperf.errors import ConfigError
from protperf.lm import inference, picture
from protperf.lm.scan import heatmap, structure
from protperf.lm.scan.options import PictureOptions, RegionOptions
from protperf.lm.scan.scan import DELETION_PER_RESIDUE, Change, Plan, Row, Scan
from protperf.lm.tables.destination import check_inputs, check_target
from protperf.lm.tables.fill import fill, input_digests
from protperf.lm.tables.formats import Encoder, choose_format
from protperf.lm.tables.options import TableOptions
from protperf.lm.tables.read_back import read_numbers
from protperf.lm.tables.sink import Sink, open_sink
from protperf.lm.variants.job import fingerprint_of
from protperf.lm.variants.options import StrategyOptions
from protperf.lm.variants.prior import Prior, advise_prior, read_prior
from protperf.lm.variants.score import Ensemble
from protperf.lm.variants.wild_type import WildType
from protperf.lm.watch import Progress, Stage, Watch, no_progress
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.loading import LoadedModel
    from protperf.lm.scan.structure import Coloured


@dataclass(frozen=True, slots=True)
class PreparedScan:
    """What decides a table: models and strategies, and by name all that its bytes depend on."""

    ensemble: Ensemble
    models: tuple[str, ...]
    fingerprint: dict[str, Any]


class ScanJob:
    """Scan a region of a protein into a table and pictures.

    Raises:
        ConfigError: a region outside of the protein, or files that would be overwritten; FileError: a directory that
        does not exist, or a structure that cannot be read; DataError: a structure of another protein;
        MissingPackageError: a format or picture needs a package.
    """

    def __init__(
        self,
        wild_type: WildType,
        region: RegionOptions,
        strategy: StrategyOptions,
        table: TableOptions,
        pictures: PictureOptions,
        inputs: Sequence[str] = (),
        watch: Watch | None = None,
    ) -> None:
        """Check all that can be checked without a model.

        Args:
            inputs: files that the wild type came from.
        """
        self.plan = plan_of(wild_type, region)
        self._strategy, self._table, self._pictures = strategy, table, pictures
        self._inputs = [*inputs, *(str(path) for path in (pictures.structure,) if path is not None)]
        self._format = choose_format(table.format, table.out)
        check_inputs(table.out, self._inputs if strategy.prior is None else [*self._inputs, str(strategy.prior)])
        if pictures.heatmap is not None:
            picture.require("a heat map")
        if pictures.heatmap is not None or pictures.report is not None:
            heatmap.check_size(self.plan.end - self.plan.start)
        for path in (pictures.heatmap, pictures.report, pictures.structure_out):
            check_target(path, [*self._inputs, *([] if table.out is None else [table.out])])
        self._match = None
        if pictures.structure is not None:
            self._match = structure.match(wild_type, str(pictures.structure), pictures.chain)
        # Last, as it may take minutes.
        self._prior = read_prior(strategy.prior, wild_type, watch)

    def prepare(
        self, models: Sequence[LoadedModel], dtype: str = "float32", watch: Watch | None = None
    ) -> PreparedScan:
        """Choose the strategies, and take the checksums of the input.

        Raises:
            ConfigError: a strategy that a model was not trained for, or that does not score deletions.
        """
        watch = watch or Watch()
        ensemble = make_ensemble(self.plan, [model.engine for model in models], self._strategy, self._prior)
        for model, scorer in zip(models, ensemble.scorers, strict=True):
            watch.note(f"{model.step.name}, strategy {scorer.name}")
        for text in ensemble.notes():
            watch.note(text)
        if self._prior is None and (advice := advise_prior(models)) is not None:
            watch.note(advice)
        digests = input_digests(self._inputs, self._table.out, watch)
        options = {**self._strategy.to_mapping(), "dtype": dtype, "matrix": self._pictures.matrix}
        options |= {**ensemble.facts(), "dels": self.plan.with_deletions}
        options |= {"offset": self.plan.wild_type.offset, "region": [self.plan.start, self.plan.end]}
        options["wild_type"] = self.plan.wild_type.id
        options["wild_type_sha256"] = hashlib.sha256(self.plan.wild_type.tokens.tobytes()).hexdigest()
        facts = fingerprint_of(models, digests, options)
        return PreparedScan(ensemble, tuple(model.step.name for model in models), facts)

    def write(self, prepared: PreparedScan, watch: Watch | None = None) -> tuple[Scan, Coloured | None]:
        """Write the table and the pictures.

        Raises:
            ConfigError: rows of an interrupted table that are neither continued nor given up, or a table of something
            else to continue; OSError: a file cannot be written.
        """
        watch, table = watch or Watch(), self._table
        scan = Scan(self.plan, prepared.ensemble.methods)
        encoder = Encoder(scan.matrix_columns if self._pictures.matrix else scan.columns, self._format)
        total = sum(1 for index in self._indices for _ in self.plan.changes(index)) * len(prepared.ensemble.scorers)
        with watch.working("scanning", "scores", total, "rows") as stage:
            sink = open_sink(
                table.out, encoder, prepared.fingerprint, identify=_identify, resume=table.resume, force=table.force
            )
            note = self._fill(sink, prepared, scan, stage, watch)
        if note is not None:
            watch.note(f"note: {note}")
        if self._pictures.heatmap is not None:
            picture.save(scan.heatmap(), self._pictures.heatmap)
        if self._pictures.report is not None:
            scan.report(self._pictures.report, self._origin(prepared))
        if self._match is None:
            return scan, None
        return scan, self._match.write(scan, str(self._pictures.structure_out))

    def _origin(self, prepared: PreparedScan) -> dict[str, Any]:
        """Where the scores come from, for the report."""
        facts = prepared.fingerprint
        named = {"model": ", ".join(prepared.models), "wild type": self.plan.wild_type.id}
        if self._prior is not None:
            named["prior"] = self._prior.name
        kept = ("wild_type_sha256", "model_sha256", "prior_sha256", "device", "dtype", "version")
        return named | {name: facts[name] for name in kept if facts.get(name)}

    @property
    def _indices(self) -> range:
        return range(self.plan.start, self.plan.end)

    def _fill(self, sink: Sink, prepared: PreparedScan, scan: Scan, stage: Stage, watch: Watch) -> str | None:
        """Write all rows; returns what there is to say about it."""
        indices = iter(self._indices)
        replayed: list[Any] = []

        def seen() -> Iterator[Any]:
            for index in indices:
                stage.skip(len(list(self.plan.changes(index))) * len(prepared.ensemble.scorers))
                for item in self._items(index):
                    replayed.append(item)
                    yield item

        def batches() -> Iterator[tuple[list[Any], list[Row]]]:
            for batch in score_positions(prepared.ensemble, scan, indices, stage.update):
                items = [item for index in batch for item in self._items(index)]
                yield items, list(map(scan.matrix_row if self._pictures.matrix else scan.row, items))

        facts = {"command": sys.argv, "model": prepared.models, "input": self._inputs}
        note = fill(sink, seen(), batches(), stage, watch, lambda: facts)
        self._read_back(scan, replayed)
        return note

    def _items(self, index: int) -> Iterable[Any]:
        """What the rows of a position stand for: the position, or its changes."""
        return [index] if self._pictures.matrix else self.plan.changes(index)

    def _read_back(self, scan: Scan, replayed: list[Any]) -> None:
        """Take the scores of an earlier run from its rows."""
        if not replayed or self._table.out is None:
            return
        out, count = self._table.out, len(replayed)
        dels = self.plan.with_deletions

        def read(column: str, more: str) -> Iterator[tuple[float, float]]:
            scores = read_numbers(out, self._format, column, count)
            per_residue = read_numbers(out, self._format, more, count) if dels else [math.nan] * count
            return zip(scores, per_residue, strict=True)

        if not self._pictures.matrix:
            for change, scores in zip(replayed, read("score", "score_per_residue"), strict=True):
                scan.put(change, scores)
            return
        for letter in self.plan.letters:
            for index, scores in zip(replayed, read(letter, DELETION_PER_RESIDUE), strict=True):
                scan.put(Change(index, letter, None), scores)


def plan_of(wild_type: WildType, region: RegionOptions) -> Plan:
    """The changes of a region.

    Raises:
        ConfigError: it reaches outside of the protein.
    """
    first, last = region.span(wild_type.offset, wild_type.last)
    return Plan(wild_type, first - wild_type.offset, last - wild_type.offset + 1, region.dels)


def make_ensemble(
    plan: Plan, engines: Sequence[Any], strategy: StrategyOptions, prior: Prior | None = None
) -> Ensemble:
    """The scorers of a scan.

    Raises:
        ConfigError: a strategy that a model was not trained for, or that does not score deletions.
    """
    ensemble = Ensemble(engines, plan.wild_type, strategy, prior)
    if plan.with_deletions and not ensemble.has_lengths:
        names = {"dels": Argument("dels", True), "strategy": Argument("strategy", "full")}
        text = "{dels} needs {strategy}, which a model has that was trained left to right"
        raise ConfigError(Message(text, **names))
    return ensemble


def score_positions(
    ensemble: Ensemble, scan: Scan, indices: Iterable[int], progress: Progress = no_progress
) -> Iterator[list[int]]:
    """Fill in the scores of positions, batch by batch in their order: the indices of each batch.

    Args:
        progress: called with the number of scores that are done.
    """

    def size(index: int) -> int:
        return sum(ensemble.size(change.variant) for change in scan.plan.changes(index))

    for batch in inference.in_batches(indices, size, ensemble.budget):
        changes = [change for index in batch for change in scan.plan.changes(index)]
        known = [(change, change.variant) for change in changes if change.variant is not None]
        progress((len(changes) - len(known)) * len(ensemble.scorers))
        if known:
            found = ensemble.score([variant for _, variant in known], progress)
            for (change, _), scores in zip(known, found, strict=True):
                scan.put(change, np.mean(scores, axis=0))
        yield batch


def _identify(item: int | Change) -> Iterator[bytes]:
    """The bytes by which a row differs from any other of the same scan."""
    yield f"{item.index}\t{item.letter}\n".encode() if isinstance(item, Change) else f"{item}\n".encode()
