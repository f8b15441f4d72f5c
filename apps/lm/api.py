"""The Python interface: `train`, `load`, `score`. Paths are local; nothing is downloaded or sent."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protperf.errors import DtypeError
from protperf.lm.alignment.align import align_files
from protperf.lm.alignment.options import AlignOptions
from protperf.lm.baselines.fit import fit_baseline
from protperf.lm.baselines.options import BaselineOptions
from protperf.lm.device import choose_engine
from protperf.lm.embedding.job import EmbedJob
from protperf.lm.embedding.options import EmbedOptions, EmbedOutput, choose_mode
from protperf.lm.embedding.partial_file import Layout
from protperf.lm.embedding.result import Embeddings
from protperf.lm.embedding.vectors import embed_batches
from protperf.lm.evaluation.job import EvalJob
from protperf.lm.evaluation.options import EvalOptions
from protperf.lm.evaluation.tally import EvalRow
from protperf.lm.generation.generate import generate, read_plan
from protperf.lm.generation.options import GenerateOptions, check_trained
from protperf.lm.loading import LoadedModel, load_run
from protperf.lm.model.config import ModelConfig
from protperf.lm.options import from_keywords, instance, pick, takes
from protperf.lm.scan.job import make_ensemble, plan_of, score_positions
from protperf.lm.scan.options import RegionOptions
from protperf.lm.scan.scan import Scan
from protperf.lm.scoring.job import ScoreJob, ScoreSummary
from protperf.lm.scoring.likelihood import residue_rows, score_batches, sequence_row
from protperf.lm.scoring.options import ScoreOptions, ScoreOutput, choose_reading
from protperf.lm.scoring.row import ResidueRow, ScoreRow
from protperf.lm.shared_options import LoadOptions, ReadingOptions, RejectOptions, is_taken
from protperf.lm.source import Source
from protperf.lm.tables.fill import JobSummary
from protperf.lm.tables.options import TableOptions
from protperf.lm.tables.table import Table
from protperf.lm.training.options import ComputeOptions
from protperf.lm.training.request import TRAINING_OPTIONS, read_request
from protperf.lm.training.signals import raise_for
from protperf.lm.variants.job import VariantTable
from protperf.lm.variants.options import OffsetOptions, StrategyOptions, VariantOptions
from protperf.lm.variants.prior import read_prior
from protperf.lm.variants.reader import is_file_name
from protperf.lm.variants.request import read_request as read_variants_request
from protperf.lm.variants.wild_type import read_wild_type

if TYPE_CHECKING:
    from Bio.SeqRecord import SeqRecord

__all__ = ["Model", "Table", "align", "baseline", "load", "score", "train"]

_SCORING = [*pick(ScoreOptions), *pick(ReadingOptions)]
_TABLE = [*pick(TableOptions, "format", "resume", "force"), *pick(RejectOptions), *pick(ScoreOutput)]
_SCANNING = [*pick(StrategyOptions), *pick(OffsetOptions), *pick(RegionOptions)]
_VARIANTS = [*pick(StrategyOptions), *pick(OffsetOptions), *pick(VariantOptions)]
_EMBEDDING = [*pick(EmbedOptions), *pick(ReadingOptions)]
_EVALUATION = [*pick(EvalOptions), *pick(ReadingOptions), *pick(RejectOptions)]
_ALIGN = pick(AlignOptions, "query", "rounds", "residues", "force")
_BASELINE = pick(BaselineOptions, "kind", "order", "theta", "residues", "force")
_OUTPUT = [*pick(EmbedOutput, "format", "shard", "resume", "force"), *pick(RejectOptions)]


class Model:
    """A trained model: `load` makes one."""

    def __init__(self, loaded: LoadedModel, options: LoadOptions) -> None:
        self._loaded, self._options = loaded, options

    def __repr__(self) -> str:
        c = self.config
        return f"Model({self._loaded.step.name!r}, attention={c.attention!r}, objective={c.objective!r})"

    @property
    def config(self) -> ModelConfig:
        return self._loaded.engine.config

    @property
    def step(self) -> int:
        """The training step whose weights these are."""
        return self._loaded.step.number

    @takes(_SCORING)
    def score(self, records: Any, **options: Any) -> Table[Any]:
        """Log-likelihoods of sequences, in nats.

        In a process forked from this one, the engine torch computes with one thread, and a warning says so.

        Args:
            records: one of the following, or an iterable of them, which is read once, lazily and in its order:
                text of residues; a `Bio.SeqRecord`; a record of `protperf.io`; a file, as a `pathlib.Path`, or as text
                that holds a `/` or ends like a sequence file (`.fasta`, `.fa.gz`, ...). In an iterable, also a pair
                (id, sequence). A sequence without a name gets its place as id; `n` of a row is the place among all
                records.
            options: those below. A `UserWarning` says how many records `residues="skip"` left out, and the table's
                `rejected` which.

        Raises:
            ConfigError: a method that the model was not trained for, or a choice that does not exist.
            FastaError: residues that the policy does not accept; FileError: a file that cannot be read.
            DtypeError: a record that is none of the above, or that may be meant in two ways.
        """
        self._check_fork()
        given = from_keywords(options, _SCORING)
        scoring, source = instance(ScoreOptions, given), Source(records, instance(ReadingOptions, given))
        chosen = choose_reading(self.config, scoring)
        scored = score_batches(
            self._loaded.engine,
            (record for record in source if is_taken(scoring.shard, record.n)),
            chosen,
            batch_tokens=scoring.batch_tokens,
            deterministic=scoring.deterministic,
        )
        pairs = (pair for batch in scored for pair in batch)
        rows: list[Any]
        if scoring.per_residue:
            rows = [row for record, values in pairs for row in residue_rows(record, values, chosen)]
        else:
            rows = [sequence_row(record, values, chosen) for record, values in pairs]
        table = Table(ResidueRow if scoring.per_residue else ScoreRow, rows, source.rejected, source.warnings)
        _warn(table, "the table's")
        return table

    @takes(_SCORING, _TABLE)
    def score_files(
        self,
        fasta: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str] | None,
        **options: Any,
    ) -> ScoreSummary:
        """Score files into a table on disk, in bounded memory, as the command does.

        The rows stand in `out.part` until all are there; with `resume=True` an interrupted call is continued.

        Args:
            fasta: one path or several; `-` is standard input.
            out: the file to write; None is standard output.

        Raises:
            ConfigError, DataError, FastaError, FileError: as on the command line.
        """
        self._check_fork()
        given = from_keywords(options, [*_SCORING, *_TABLE])
        table = instance(TableOptions, {**given, "out": None if out is None else Path(out)})
        asked, reading = instance(ScoreOptions, given), instance(ReadingOptions, given)
        job = ScoreJob(
            _paths(fasta), asked, reading, table, instance(RejectOptions, given), instance(ScoreOutput, given)
        )
        summary = job.write(job.prepare(self._loaded, self._options.dtype))
        for text in summary.warnings:
            warnings.warn(text, stacklevel=2)
        return summary

    @takes(_EVALUATION)
    def eval(self, fasta: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], **options: Any) -> Table[EvalRow]:
        """How well the model predicts the sequences of files, a set each: perplexity, accuracy and calibration.

        Args:
            fasta: one path or several; `-` is standard input.
            options: those below. A `UserWarning` says which set is above `fail_above`.

        Raises:
            ConfigError, FastaError, FileError: as on the command line.
        """
        self._check_fork()
        given = from_keywords(options, _EVALUATION)
        asked, reading = instance(EvalOptions, given), instance(ReadingOptions, given)
        job = EvalJob(_paths(fasta), asked, reading, TableOptions(), instance(RejectOptions, given))
        summary = job.rows(self._loaded.engine)
        for text in (*summary.warnings, *summary.failed):
            warnings.warn(text, stacklevel=2)
        return Table(EvalRow, summary.rows, (), summary.warnings)

    @takes(_VARIANTS)
    def variants(
        self, wild_type: Any, variants: Any, *, also: Sequence[str | os.PathLike[str] | Model] = (), **options: Any
    ) -> VariantTable:
        """Scores of variants of one protein, in nats: above 0 where the model prefers the variant.

        Args:
            wild_type: residues as text, a `Bio.SeqRecord`, a pair (id, sequence), or a file with one record.
            variants: one variant or several (`A24G`, `A24G:D50N`, `p.Ala24Gly`, `A24_G26del`, `K30_L31insGS`, `WT`),
                or the path of a table or a list of them, whose other columns are kept.
            also: further models, or their paths; the score is the mean of all.
            options: those below. A `UserWarning` says how many variants `invalid="nan"` left without a score. With
                `label_col`, the table's `metrics` say how well the scores agree with the measured values.

        Raises:
            ConfigError: a strategy that a model was not trained for. DataError: a variant that contradicts the wild
            type, repeats a site, lies outside or cannot be read, with its place; a fault of the table. FileError: a
            file that cannot be read.
        """
        self._check_fork()
        request = read_variants_request(from_keywords(options, _VARIANTS))
        if hasattr(variants, "columns"):
            raise DtypeError("variants is a table; give its column of variants, such as table['mutant'], or its path")
        single = isinstance(variants, (str, os.PathLike))
        is_file = isinstance(variants, os.PathLike) or (isinstance(variants, str) and is_file_name(variants))
        source = os.fspath(variants) if is_file else [variants] if single else list(variants)
        job = request.job(source, wild_type)
        table = job.table(job.ensemble([model._loaded.engine for model in self._with(also)]))
        for text in table.warnings:
            warnings.warn(text, stacklevel=2)
        return table

    @takes(_SCANNING)
    def scan(self, wild_type: Any, *, also: Sequence[str | os.PathLike[str] | Model] = (), **options: Any) -> Scan:
        """Scores of every single change of a protein, in nats: above 0 where the model prefers the change.

        Args:
            wild_type: residues as text, a `Bio.SeqRecord`, a pair (id, sequence), or a file with one record.
            also: further models, or their paths; the score is the mean of all.
            options: those below.

        Raises:
            ConfigError: a strategy that a model was not trained for, or a region outside of the protein. DataError:
            a wild type that is not one sequence. FileError: a file that cannot be read.
        """
        self._check_fork()
        given = from_keywords(options, _SCANNING)
        strategy = instance(StrategyOptions, given)
        wild = read_wild_type(wild_type, instance(OffsetOptions, given).offset)
        plan = plan_of(wild, instance(RegionOptions, given))
        engines = [model._loaded.engine for model in self._with(also)]
        ensemble = make_ensemble(plan, engines, strategy, read_prior(strategy.prior, wild))
        scan = Scan(plan, ensemble.methods)
        for _ in score_positions(ensemble, scan, range(plan.start, plan.end)):
            pass
        return scan

    def _with(self, also: Sequence[str | os.PathLike[str] | Model]) -> list[Model]:
        """This model and others, which are loaded as it was."""
        loading = {name: getattr(self._options, name) for name in ("device", "dtype", "engine")}
        return [self, *(each if isinstance(each, Model) else load(each, **loading) for each in also)]

    def _check_fork(self) -> None:
        """Warn the caller of a method where torch computes in a process that was forked."""
        if self._loaded.engine.name == "torch":
            from protperf.lm.model.torch_process import check_fork

            check_fork(stacklevel=4)

    @takes(_EMBEDDING)
    def embed(self, records: Any, **options: Any) -> Embeddings:
        """Vectors of sequences: hidden states of the model, pooled or per residue.

        Args:
            records: as for `score`.
            options: those below; `residues` is the policy for odd residues.

        Raises:
            ConfigError: a mode, layer or pool that the model does not have; DataError: a number that the stored type
            cannot hold; FastaError, FileError, DtypeError: as for `score`.
        """
        self._check_fork()
        given = from_keywords(options, _EMBEDDING)
        asked, source = instance(EmbedOptions, given), Source(records, instance(ReadingOptions, given))
        engine = self._loaded.engine
        batches = embed_batches(engine, source, asked, choose_mode(engine.config, asked))
        rows = [row for _, batch in batches for row in batch]
        layout = Layout(asked.arrays, engine.config.model_dim, asked.stored_type)
        found = Embeddings(rows, layout, source.rejected, source.warnings)
        _warn(found, "the result's")
        return found

    @takes(_EMBEDDING, _OUTPUT)
    def embed_files(
        self,
        fasta: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        out: str | os.PathLike[str],
        **options: Any,
    ) -> JobSummary:
        """Embed files into a file of vectors, in bounded memory, as the command does.

        The rows stand in `out.part` until all are there; with `resume=True` an interrupted call is continued.

        Args:
            fasta: one path or several; `-` is standard input.
            out: the file to write: `.parquet`, `.npz`, `.h5` or `.safetensors`.

        Raises:
            ConfigError, DataError, FastaError, FileError, MissingPackageError: as on the command line.
        """
        self._check_fork()
        given = from_keywords(options, [*_EMBEDDING, *_OUTPUT])
        output = instance(EmbedOutput, {**given, "out": Path(out)})
        asked, reading = instance(EmbedOptions, given), instance(ReadingOptions, given)
        job = EmbedJob(_paths(fasta), asked, reading, output, instance(RejectOptions, given))
        summary = job.write(job.prepare(self._loaded))
        for text in summary.warnings:
            warnings.warn(text, stacklevel=2)
        return summary

    @takes(pick(GenerateOptions))
    def generate(self, **options: Any) -> Iterator[SeqRecord]:
        """New sequences, drawn as they are asked for, as `Bio.SeqRecord`s.

        Sequence i is a function of `seed` and i alone. `annotations` hold what the description says: `len`; `ll`, which
        is that of `score`, or `pll` of the positions that were drawn in a template; `ppl`; `end`, `eos` or `max_len`;
        and with `exclude`, `identity` with the `nearest` of these sequences.

        Args:
            options: those below.

        Raises:
            ConfigError: options that exclude each other, or that the model was not trained for; DtypeError: a prompt or
            template with line breaks, which may be several; FastaError, FileError: prompts or sequences to exclude that
            cannot be read; DataError: there are none of them, or, when iteration reaches it, a sequence was one of the
            excluded ones again and again.
        """
        asked = instance(GenerateOptions, from_keywords(options, pick(GenerateOptions)))
        engine = self._loaded.engine
        check_trained(engine.config, asked)
        plan = read_plan(asked)
        return (each.to_record() for each in generate(engine, plan, plan.items()))


def _paths(fasta: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    return [os.fspath(path) for path in ([fasta] if isinstance(fasta, (str, os.PathLike)) else fasta)]


def _warn(found: Table[Any] | Embeddings, whose: str) -> None:
    """Warn the caller of `score` or `embed` of what deserves attention in the input."""
    notes = list(found.warnings)
    if found.rejected:
        total = len(found) + len(found.rejected)
        notes.append(f"rejected {len(found.rejected)} of {total} records; {whose} `rejected` lists them")
    for text in notes:
        warnings.warn(text, stacklevel=3)


@takes(pick(LoadOptions))
def load(path: str | os.PathLike[str], **options: Any) -> Model:
    """Load a run directory (its best step by validation) or one step of it.

    Raises:
        MissingFileError: no such directory; CheckpointError: a damaged file, named; DeviceError: a device or type that
        this machine lacks; ConfigError: an unknown one.
    """
    chosen = instance(LoadOptions, from_keywords(options, pick(LoadOptions)))
    if choose_engine(chosen.engine, chosen.device, chosen.dtype) == "torch":
        from protperf.lm.model.torch_process import check_fork

        check_fork()
    return Model(load_run(path, chosen.dtype, chosen.device, chosen.engine), chosen)


def score(model: str | os.PathLike[str] | Model, records: Any, **options: Any) -> Table[ScoreRow]:
    """`load(model).score(records, **options)`."""
    return (model if isinstance(model, Model) else load(model)).score(records, **options)


@takes(_ALIGN)
def align(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], **options: Any
) -> Path:
    """Align a family to a query, for `baseline` and priors, and return the file.

    Args:
        data: sequence files, plain or compressed.
        out: the alignment, A3M: the query first, then every sequence that fits.

    Raises:
        ConfigError, DataError, FastaError, FileError: as on the command line.
    """
    given = from_keywords(options, _ALIGN)
    align_files(_paths(data), instance(AlignOptions, {**given, "out": Path(out)}))
    return Path(out)


@takes(_BASELINE)
def baseline(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], **options: Any
) -> Model:
    """Fit a baseline, a model made of counts, write its directory and return it.

    Args:
        data: sequence files for `unigram` and `ngram`; one alignment for `site` and `pairwise`; nothing, as `()`, for
            `blosum`.
        out: the directory.

    Raises:
        ConfigError, DataError, FastaError, FileError: as on the command line.
    """
    given = from_keywords(options, _BASELINE)
    fit_baseline(_paths(data), instance(BaselineOptions, {**given, "out": Path(out)}))
    return load(out)


_TRAIN_OPTIONS = [*TRAINING_OPTIONS, *pick(ComputeOptions, "device")]


@takes(_TRAIN_OPTIONS)
def train(
    fasta: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    quiet: bool = False,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
    **options: Any,
) -> Model:
    """Train a model on sequence files and return it; progress and notes go to standard error, as those of the command.

    A signal that asks the program to end (SIGINT, SIGTERM, SIGHUP, SIGXCPU, SIGUSR1) ends the training: the step is
    finished and saved, then KeyboardInterrupt is raised for SIGINT and SystemExit(128 + number) for the others.

    Where other programs compute too, set OMP_WAIT_POLICY=passive before torch is imported, as the command does: torch's
    idle threads then sleep instead of spinning.

    Args:
        fasta: one file or several, plain or compressed.
        out: the run directory.
        quiet: no progress and no notes; warnings are shown.
        report: called with each line of metrics.
        options: those below; None stands for the default. Exactly one of time, steps and epochs is given, unless a run
            is resumed. Records that the policy for residues leaves out are counted on standard error.

    Raises:
        ConfigError, DataError, FastaError, FileError, CheckpointError: as on the command line.
        DivergenceError: a loss, a gradient or a weight is not finite; the last checkpoint from before is kept.
    """
    # Training alone needs torch, which takes seconds to load.
    from protperf.lm.cli.progress import TrainProgress
    from protperf.lm.model.torch_process import check_fork

    check_fork()
    given = from_keywords({name: value for name, value in options.items() if value is not None}, _TRAIN_OPTIONS)
    device = given.get("device", "auto")
    request = read_request(out, given)
    with TrainProgress(None, quiet, request.options.time_s) as shown:

        def take(line: dict[str, Any]) -> None:
            shown.report(line)
            report(line)

        outcome = request.train(fasta, out, device, report=take, warn=shown.warn, watch=shown)
        if outcome.signal is not None:
            raise_for(outcome.signal)
    facts = outcome.facts()
    # The last says what came of it; what is before it deserves attention.
    for text in facts[:-1] if quiet else facts:
        shown.warn(text)
    return load(outcome.run, device=device)
