"""The Python interface: `train`, `load`, `score`. Paths are local; nothing is downloaded or sent."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from protperf import io
from protperf.errors import ConfigError, MissingPackageError
from protperf.lm.device import check_device, check_dtype
from protperf.lm.loading import LoadedModel, load_run
from protperf.lm.model.config import ModelConfig
from protperf.lm.scoring.choices import BATCH_TOKENS, COLUMNS, choose_method
from protperf.lm.scoring.score import Row, score_records
from protperf.lm.source import Source
from protperf.lm.training.options import parse_duration
from protperf.lm.training.resume import new_choices, stored_choices
from protperf.lm.training.run import train_run
from protperf.lm.training.signals import raise_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Model", "Table", "load", "score", "train"]


class Table:
    """Scores in the order of the records: iterate over rows, or take a column.

    Attributes:
        rows: a `Row` for each record that was scored.
        rejected: what `residues="skip"` left out, as `protperf.io.Rejection`s.
        warnings: what deserves an eye in the input, such as a file that looks like nucleotides.
    """

    def __init__(self, rows: list[Row], rejected: Iterable[io.Rejection] = (), warnings: Iterable[str] = ()) -> None:
        self.rows, self.rejected, self.warnings = rows, tuple(rejected), tuple(warnings)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> Row:
        return self.rows[index]

    def __repr__(self) -> str:
        left_out = f", {len(self.rejected)} rejected" if self.rejected else ""
        return f"Table of {len(self.rows)} rows{left_out}: {', '.join(COLUMNS)}"

    def numpy(self, column: str) -> NDArray[Any]:
        """One column as an array [number of records].

        Raises:
            ConfigError: no such column.
        """
        if column not in COLUMNS:
            raise ConfigError(f"column {column!r} is unknown; choose one of {', '.join(COLUMNS)}")
        return np.array([getattr(row, column) for row in self.rows])

    def to_pandas(self) -> Any:
        """A pandas DataFrame.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return _frames("pandas").DataFrame(self._columns())

    def to_polars(self) -> Any:
        """A polars DataFrame.

        Raises:
            MissingPackageError: polars is not installed.
        """
        return _frames("polars").DataFrame(self._columns())

    def _columns(self) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for name, kind in COLUMNS.items():
            values = [getattr(row, name) for row in self.rows]
            # Numbers keep their types where there are no rows.
            columns[name] = values if kind is str else np.array(values, kind)
        return columns


def _frames(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingPackageError(f"to_{package} needs {package}; install it with pip install {package}") from error


class Model:
    """A trained model: `load` makes one."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    def __repr__(self) -> str:
        c = self.config
        return f"Model({str(self._loaded.step.path)!r}, attention={c.attention!r}, objective={c.objective!r})"

    @property
    def config(self) -> ModelConfig:
        return self._loaded.network.config

    @property
    def step(self) -> int:
        """The training step whose weights these are."""
        return self._loaded.step.number

    def score(
        self,
        records: Any,
        *,
        method: str = "auto",
        residues: str = "map",
        seq_col: str | None = None,
        id_col: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        deterministic: bool = False,
    ) -> Table:
        """Log-likelihoods of sequences, in nats.

        Args:
            records: one of the following, or an iterable of them, which is read once, lazily and in its order:
                text of residues; a pair (id, sequence); a `Bio.SeqRecord`; a record of `protperf.io`; a file, as a
                `pathlib.Path`, or as text that holds a `/` or ends like a sequence file (`.fasta`, `.fa.gz`, ...).
                A sequence without a name gets its place as id; `n` of a row is the place among all records.
            method: `ll` (left to right), `pll` (each residue given all others) or `auto`.
            residues: `map`, `strict` or `skip`; see `protperf.io.read_tokens`. A `UserWarning` tells how many records
                `skip` left out, and the table's `rejected` which.
            seq_col: files are tables (CSV or TSV) with their sequences in this column, and ids in `id_col`.
            batch_tokens: residues read together in one pass.
            deterministic: the same bits whatever the batch size and order.

        Raises:
            ConfigError: a method that the model was not trained for, or a choice that does not exist.
            FastaError: residues that the policy does not take; FileError: a file that cannot be read.
            DtypeError: a record that is none of the above.
        """
        network = self._loaded.network
        chosen = choose_method(network.config.objective, method)
        source = Source(records, residues, seq_col=seq_col, id_col=id_col)
        scored = score_records(network, source, chosen, batch_tokens=batch_tokens, deterministic=deterministic)
        table = Table(list(scored), source.rejected, source.warnings)
        notes = list(table.warnings)
        if table.rejected:
            total = len(table) + len(table.rejected)
            notes.append(f"rejected {len(table.rejected)} of {total} records; the table's `rejected` tells which")
        for text in notes:
            warnings.warn(text, stacklevel=2)
        return table


def load(path: str | os.PathLike[str], device: str = "auto", dtype: str = "float32") -> Model:
    """Load a run directory (its best step by validation) or one step of it, to compute in float32 or float64.

    Raises:
        MissingFileError: no such directory; CheckpointError: a damaged file, named; DeviceError: a device or type that
        is not here; ConfigError: an unknown one.
    """
    check_device(device)
    check_dtype(dtype)
    return Model(load_run(path, dtype))


def score(model: str | os.PathLike[str] | Model, records: Any, **options: Any) -> Table:
    """`load(model).score(records, **options)`."""
    return (model if isinstance(model, Model) else load(model)).score(records, **options)


def train(
    fasta: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    size: str | None = None,
    objective: str | None = None,
    attention: str | None = None,
    time: str | float | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    validate: str | os.PathLike[str] | float | None = None,
    residues: str | None = None,
    seq_col: str | None = None,
    resume: bool = False,
    force: bool = False,
    seed: int | None = None,
    report: Callable[[dict[str, Any]], None] = lambda line: None,
    **options: Any,
) -> Model:
    """Train a model on sequence files and return it.

    A signal that asks the program to end (SIGINT, SIGTERM, SIGHUP, SIGXCPU, SIGUSR1) ends the training: the step is
    finished and saved, then KeyboardInterrupt is raised for SIGINT and SystemExit(128 + number) for the others.

    Args:
        size: `nano` unless named otherwise; objective: `both`; attention: `relu`; seed: 42.
        time: seconds, or text such as `20m`; exactly one of time, steps and epochs.
        validate: the fraction of the sequences to hold out (0.02), or a file.
        resume: continue the run in `out` with the options it was started with; time, steps or epochs may extend it.
            A run that has no checkpoint yet is started.
        residues: `map` (unless named otherwise), `strict` or `skip`; see `protperf.io.read_tokens`. Records left out
            are counted on standard error.
        seq_col: the files are tables (CSV or TSV) with their sequences in this column.
        report: called with each line of metrics.
        options: further fields of `TrainOptions` (lr, batch_tokens, ...), num_features and dropout.

    Raises:
        ConfigError, DataError, FastaError, FileError, CheckpointError: as on the command line.
        DivergenceError: a loss, a gradient or a weight is not finite; the last checkpoint from before is kept.
    """
    limit = parse_duration(time) if isinstance(time, str) else time
    fraction = validate if isinstance(validate, (int, float)) else None
    named = {"size": size, "objective": objective, "attention": attention, "seed": seed, "validate": fraction}
    named["residues"] = residues
    named |= {"steps": steps, "epochs": epochs, "time_s": limit, **options}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    held = None if isinstance(validate, (int, float)) else validate
    if held is not None:
        given["validate"] = None
    config, chosen = stored_choices(out, given) if resume else new_choices(given)
    outcome = train_run(
        fasta, out, config, chosen, validate=held, seq_col=seq_col, resume=resume, force=force, report=report
    )
    if outcome.signal is not None:
        raise_for(outcome.signal)
    if outcome.remark is not None:
        print(f"warning: {outcome.remark}", file=sys.stderr)
    return load(outcome.run)
