"""Log-likelihoods of sequences: `ll` left to right, `pll` every residue given all others,
`pll-fast` the same with several residues masked together.

`ll` starts at p(x1 given BOS) and leaves EOS out; probabilities are over the whole vocabulary. B, Z, J and X are
context and are not scored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import DataError
from protperf.lm import inference
from protperf.lm.alphabet import FIRST_RESIDUE, LAST_SCORED, MASK
from protperf.lm.data.batches import frame
from protperf.lm.engine import CAUSAL, MASKED, Engine
from protperf.lm.scoring.options import BATCH_TOKENS, FAST_PASSES
from protperf.lm.scoring.row import ResidueRow, ScoreRow
from protperf.lm.watch import Progress, no_progress
from protperf.message import Argument, Message

T = TypeVar("T", bound=np.generic)


def score_records(
    engine: Engine,
    records: Iterable[io.Record],
    method: str,
    *,
    batch_tokens: int = BATCH_TOKENS,
    deterministic: bool = False,
) -> Iterator[ScoreRow]:
    """Score records lazily, in their order; arguments are those of `score_batches`."""
    for batch in score_batches(engine, records, method, batch_tokens=batch_tokens, deterministic=deterministic):
        for record, values in batch:
            yield sequence_row(record, values, method)


def score_batches(
    engine: Engine,
    records: Iterable[io.Record],
    method: str,
    *,
    batch_tokens: int = BATCH_TOKENS,
    deterministic: bool = False,
    progress: Progress = no_progress,
) -> Iterator[list[tuple[io.Record, NDArray[np.float64]]]]:
    """Score records lazily, in their order: in batches, each record with the log-likelihoods of its residues [L].

    Args:
        method: `ll`, `ll-reverse`, `ll-both`, `pll` or `pll-fast`.
        batch_tokens: tokens packed into one pass: of several sequences for `ll`, of one and its masked sites else.
        deterministic: one sequence per pass, and sums that no number of threads changes: the same bits for any batch
            size and any other sequences.
        progress: called with the tokens read.

    Raises:
        DataError: a likelihood is not finite.
    """
    budget = BATCH_TOKENS if deterministic else batch_tokens
    together = 1 if deterministic or method.startswith("pll") else batch_tokens
    for batch in inference.in_batches(records, lambda record: len(record.tokens) + 2, together):
        # Not around the yield: what the caller does with a batch does not belong to this.
        with engine.computing(deterministic):
            values = _score_batch(engine, batch, method, budget, progress)
        for record, log_probs in zip(batch, values, strict=True):
            check_finite(record, log_probs)
        yield list(zip(batch, values, strict=True))


def _score_batch(
    engine: Engine, records: list[io.Record], method: str, budget: int, progress: Progress
) -> list[NDArray[np.float64]]:
    if not method.startswith("pll"):
        direction = method.removeprefix("ll").removeprefix("-") or "forward"
        return log_likelihoods(engine, [record.tokens for record in records], progress, direction)
    fast = method == "pll-fast"
    return [pseudo_log_likelihoods(engine, record.tokens, budget, progress, fast=fast) for record in records]


def log_likelihoods(
    engine: Engine,
    sequences: list[NDArray[np.uint8]],
    progress: Progress = no_progress,
    direction: str = "forward",
) -> list[NDArray[np.float64]]:
    """Log p(x_i given x_<i), nats, of each residue of each sequence [L].

    Args:
        direction: `reverse` is log p(x_i given x_>i), `both` the mean of the two.
    """
    if direction == "both":
        readings = [log_likelihoods(engine, sequences, progress, each) for each in ("forward", "reverse")]
        return [0.5 * (forward + reverse) for forward, reverse in zip(*readings, strict=True)]
    if len(sequences) == 1 and len(sequences[0]) + 2 > inference.CHUNK:
        return [chunked_log_likelihoods(engine, sequences[0], None, progress, direction)]
    framed = [_in_order(frame(x), direction) for x in sequences]
    tokens, borders = inference.pack([x[:-1] for x in framed])
    # Each token predicts the next one: BOS, or EOS in reverse, stands before the first; the last is not asked for.
    targets = np.concatenate([x[1:] for x in framed])
    log_probs = engine.log_probs(tokens, borders, CAUSAL, targets=targets).astype(np.float64)
    progress(sum(len(x) + 2 for x in sequences))
    return [_in_order(log_probs[a : b - 1], direction) for a, b in itertools.pairwise(borders.tolist())]


def chunked_log_likelihoods(
    engine: Engine,
    residues: NDArray[np.uint8],
    chunk: int | None = None,
    progress: Progress = no_progress,
    direction: str = "forward",
) -> NDArray[np.float64]:
    """The same for one sequence, `chunk` tokens at a time with carried state."""
    parts: list[NDArray[np.float64]] = []
    framed = _in_order(frame(residues), direction)
    for log_probs in inference.chunked_log_probs(engine, framed[:-2], chunk, framed[1:-1]):
        parts.append(log_probs.astype(np.float64))
        progress(len(log_probs))
    return _in_order(np.concatenate(parts), direction) if parts else np.empty(0)


def _in_order(values: NDArray[T], direction: str) -> NDArray[T]:
    """What belongs to the tokens of a sequence, in the order in which they are read, or back."""
    return np.ascontiguousarray(values[::-1]) if direction == "reverse" else values


def pseudo_log_likelihoods(
    engine: Engine,
    residues: NDArray[np.uint8],
    budget: int = BATCH_TOKENS,
    progress: Progress = no_progress,
    among: NDArray[np.int64] | None = None,
    fast: bool = False,
) -> NDArray[np.float64]:
    """Log p(x_i given all others), nats, of each residue [L]: each site masked alone, L passes packed by `budget`.

    Args:
        among: the only sites that are scored; the others are NaN.
        fast: the method `pll-fast`: pass r of `FAST_PASSES` masks the scored sites number r, r + FAST_PASSES, ...
            together. The pattern is fixed, so that a residue of one sequence has one score.
    """
    sites = np.flatnonzero(is_scored(residues))
    sites = sites if among is None else np.intersect1d(sites, among)
    masked = [sites[i::FAST_PASSES] for i in range(min(FAST_PASSES, len(sites)))] if fast else list(sites[:, None])
    found = np.full(len(residues), math.nan)
    together = max(1, budget // (len(residues) + 2))
    for start in range(0, len(masked), together):
        part = masked[start : start + together]
        found[np.concatenate(part)] = _masked_log_probs(engine, residues, part)
        progress(len(part) * (len(residues) + 2))
    return found


def _masked_log_probs(
    engine: Engine, residues: NDArray[np.uint8], masked: list[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Log-probabilities of the residues at sets of sites, one copy of the sequence for each set, masked there."""
    copies = np.tile(frame(residues), (len(masked), 1))
    for copy, sites in zip(copies, masked, strict=True):
        copy[sites + 1] = MASK
    tokens, borders = inference.pack(list(copies))
    rows = np.concatenate([start + sites + 1 for start, sites in zip(borders, masked, strict=False)])
    return engine.log_probs(tokens, borders, MASKED, rows, residues[np.concatenate(masked)]).astype(np.float64)


def is_scored(residues: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which residues count: the twenty, U and O."""
    return (residues >= FIRST_RESIDUE) & (residues <= LAST_SCORED)


def check_finite(record: io.Record, log_probs: NDArray[np.float64]) -> None:
    """Refuse a likelihood that is not finite.

    Raises:
        DataError: naming the record.
    """
    if not np.isfinite(log_probs[is_scored(record.tokens)]).all():
        # A checkpoint with such weights was refused, so finite ones have made a number that the type cannot hold.
        text = "record {n} ({id!r}) has a likelihood that is not finite: the model overflows on it; try {dtype}"
        raise DataError(Message(text, n=record.n, id=record.id, dtype=Argument("dtype", "float64")))


def sequence_row(record: io.Record, log_probs: NDArray[np.float64], method: str) -> ScoreRow:
    """The row of a sequence."""
    scored = is_scored(record.tokens)
    count = int(scored.sum())
    ll = math.fsum(log_probs[scored]) if count else math.nan
    mean = ll / count if count else math.nan
    # math.exp raises where float64 would say inf.
    ppl = math.exp(-mean) if not mean < -700 else math.inf
    return ScoreRow(
        record.n, record.id, len(record), count, ll, mean, ppl, method, ",".join(io.flag_names(record.flags))
    )


def residue_rows(record: io.Record, log_probs: NDArray[np.float64], method: str) -> list[ResidueRow]:
    """The rows of the residues of a sequence; one without residues has a single row, with position 0 and no score."""
    if not len(record):
        return [ResidueRow(record.n, record.id, 0, "", math.nan, method)]
    values = np.where(is_scored(record.tokens), log_probs, math.nan).tolist()
    letters = io.decode(record.tokens.tobytes())
    return [
        ResidueRow(record.n, record.id, position, letter, value, method)
        for position, (letter, value) in enumerate(zip(letters, values, strict=True), 1)
    ]
