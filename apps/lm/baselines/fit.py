"""Fit a baseline and write it: what the command `baseline` runs, and `protperf.lm.baseline`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf import io, pairwise
from protperf.alignment import row_weights
from protperf.errors import DataError
from protperf.lm.alignment import profile
from protperf.lm.alignment.alignment import GAP, Alignment, read_alignment
from protperf.lm.alignment.relatives import held_out
from protperf.lm.baselines import files, ngram
from protperf.lm.baselines.options import OF_ALIGNMENTS, OF_SEQUENCES, BaselineOptions
from protperf.lm.tables.fill import file_digest
from protperf.lm.watch import Watch

_LARGE = 400.0
"""Effective number of sequences from which pairs of columns do without the members, as a second fit would take minutes;
a smaller family needs every row, and the columns of the others stand for it where it is compared with a model."""
_LEAST_KNOWN = 0.7
"""Share of the columns in which a row must have a residue to say something of pairs."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A baseline in memory: its kind, its numbers, and what is to be said of the data and the fit."""

    kind: str
    arrays: dict[str, NDArray[Any]]
    facts: dict[str, Any]


def fit_baseline(data: Sequence[str], options: BaselineOptions, watch: Watch | None = None) -> None:
    """Fit a baseline to files and write its directory.

    Raises:
        ConfigError: files that this kind does not take; DataError, FastaError: the input is at fault; FileError: a
        file is missing, or the directory cannot be written.
    """
    watch = watch or Watch()
    options.check_input(list(data))
    files.check_free(options.out, options.force)
    fitted = fit(data, options, watch)
    names, digests = [Path(path).name for path in data], [file_digest(path) for path in data]
    facts = {"data": names, "data_sha256": digests, **options.to_mapping(), **fitted.facts}
    files.write(options.out, fitted.kind, fitted.arrays, facts)


def fit(data: Sequence[str], options: BaselineOptions, watch: Watch) -> Fitted:
    """Count what the kind that is asked for counts."""
    if options.kind in OF_SEQUENCES:
        order = 1 if options.kind == "unigram" else options.order
        return fit_ngram(data, options.kind, order, options.residues, watch)
    if options.kind in OF_ALIGNMENTS:
        return fit_family(read_alignment(data[0]), options.kind, options.theta, watch)
    return Fitted(options.kind, {}, {})


def fit_ngram(data: Sequence[str], kind: str, order: int, residues: str, watch: Watch) -> Fitted:
    """N-grams of sequence files.

    Raises:
        DataError: there is nothing to count; FastaError, FileError: a file is at fault.
    """
    reader = io.read_tokens(data, residues=residues)
    with watch.waiting("counting", " residues") as stage:

        def batches() -> Any:
            for batch in reader:
                stage.update(len(batch.tokens))
                yield batch

        counts = ngram.count(batches(), order)
    for text in reader.warnings:
        watch.warn(text)
    summary = reader.summary
    if not summary.residues:
        raise DataError(f"{', '.join(data)}: has no residues to count")
    log_probs, strengths = ngram.fit(counts)
    facts = {"order": order, "sequences": summary.records, "counted_residues": summary.residues, "strengths": strengths}
    return Fitted(kind, {"log_probs": log_probs.astype(np.float32)}, facts)


def fit_family(alignment: Alignment, kind: str, theta: float, watch: Watch) -> Fitted:
    """A model of the columns of an alignment, and some members, by which the family is compared with other models.

    Args:
        kind: `site` or `pairwise`; theta: identity from which rows are relatives.
    """
    for text in alignment.notes:
        watch.note(f"note: {text}")
    weights = row_weights(alignment.codes, theta)
    members, kept = held_out(alignment.codes, weights, theta)
    arrays: dict[str, NDArray[Any]] = {"members": alignment.codes[members].astype(np.int64)}
    arrays["query"] = alignment.codes[0].astype(np.int64)
    arrays["log_probs"] = profile.fit(alignment.codes, weights).astype(np.float32)
    rest, is_large = alignment.codes[kept], weights.sum() >= _LARGE
    if kind == "site" or not is_large:
        arrays["log_probs_without_members"] = profile.fit(rest, weights[kept]).astype(np.float32)
    if kind == "pairwise":
        arrays |= _fit_pairs(rest if is_large else alignment.codes, theta, watch)
    facts = {
        "query": alignment.ids[0],
        "columns": alignment.num_columns,
        "sequences": len(alignment),
        "effective_sequences": round(float(weights.sum()), 1),
        "left_out": len(members),
    }
    return Fitted(kind, arrays, facts)


def is_complete(codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The rows that say something of pairs [N]."""
    return np.asarray((codes != GAP).mean(1) >= _LEAST_KNOWN)


def _fit_pairs(codes: NDArray[np.uint8], theta: float, watch: Watch) -> dict[str, NDArray[Any]]:
    """Fields and couplings."""
    complete = np.ascontiguousarray(codes[is_complete(codes)])
    if not len(complete):
        raise DataError(f"no row of the alignment has residues in {_LEAST_KNOWN:.0%} of its columns")
    with watch.working("fitting", " columns", codes.shape[1], "") as stage:
        found = pairwise.fit(complete, row_weights(complete, theta), progress=stage.update)
    return {"fields": found.fields, "couplings": found.couplings}
