"""Log-likelihoods of sequences: `ll` left to right, `pll` every residue given all others.

`ll` starts at p(x1 given BOS) and leaves EOS out; probabilities are over the whole vocabulary. B, Z, J and X are
context and are not scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import DataError
from protperf.lm import inference
from protperf.lm.alphabet import FIRST_RESIDUE, LAST_SCORED, MASK
from protperf.lm.data.batches import frame
from protperf.lm.engine import CAUSAL, MASKED, Engine
from protperf.lm.scoring.options import BATCH_TOKENS
from protperf.lm.scoring.row import Row
from protperf.lm.watch import Progress, no_progress
from protperf.message import Argument, Message


def score_records(
    engine: Engine,
    records: Iterable[io.Record],
    method: str,
    *,
    batch_tokens: int = BATCH_TOKENS,
    deterministic: bool = False,
) -> Iterator[Row]:
    """Score records lazily, in their order; arguments are those of `score_batches`."""
    for _, rows in score_batches(engine, records, method, batch_tokens=batch_tokens, deterministic=deterministic):
        yield from rows


def score_batches(
    engine: Engine,
    records: Iterable[io.Record],
    method: str,
    *,
    batch_tokens: int = BATCH_TOKENS,
    deterministic: bool = False,
    progress: Progress = no_progress,
) -> Iterator[tuple[list[io.Record], list[Row]]]:
    """Score records lazily, in their order: each batch and its rows.

    Args:
        method: `ll` or `pll`.
        batch_tokens: tokens packed into one pass: of several sequences for `ll`, of one and its masked sites for `pll`.
        deterministic: one sequence per pass, and sums that no number of threads changes: the same bits for any batch
            size and any other sequences.
        progress: called with the tokens read.

    Raises:
        DataError: a likelihood is not finite.
    """
    budget = BATCH_TOKENS if deterministic else batch_tokens
    together = 1 if deterministic or method == "pll" else batch_tokens
    for batch in inference.in_batches(records, lambda record: len(record.tokens) + 2, together):
        # Not around the yield: what the caller does with a batch is no part of this.
        with engine.computing(deterministic):
            rows = _score_batch(engine, batch, method, budget, progress)
        yield batch, rows


def _score_batch(engine: Engine, records: list[io.Record], method: str, budget: int, progress: Progress) -> list[Row]:
    if method == "ll":
        values = log_likelihoods(engine, [record.tokens for record in records], progress)
    else:
        values = [pseudo_log_likelihoods(engine, record.tokens, budget, progress) for record in records]
    return [_row(record, log_probs, method) for record, log_probs in zip(records, values, strict=True)]


def log_likelihoods(
    engine: Engine, sequences: list[NDArray[np.uint8]], progress: Progress = no_progress
) -> list[NDArray[np.float64]]:
    """Log p(x_i given x_<i), nats, of each residue of each sequence [L]."""
    if len(sequences) == 1 and len(sequences[0]) + 2 > inference.CHUNK:
        return [chunked_log_likelihoods(engine, sequences[0], None, progress)]
    tokens, borders = inference.pack([frame(x)[:-1] for x in sequences])
    log_probs = engine.log_probs(tokens, borders, CAUSAL)
    progress(sum(len(x) + 2 for x in sequences))
    # The row of token i holds the prediction of residue i: BOS stands before the first.
    return [_picked(log_probs[a : b - 1], x) for a, b, x in zip(borders, borders[1:], sequences, strict=False)]


def chunked_log_likelihoods(
    engine: Engine, residues: NDArray[np.uint8], chunk: int | None = None, progress: Progress = no_progress
) -> NDArray[np.float64]:
    """The same for one sequence, `chunk` tokens at a time with carried state."""
    parts: list[NDArray[np.float64]] = []
    done = 0
    for log_probs in inference.chunked_log_probs(engine, frame(residues)[:-2], chunk):
        parts.append(_picked(log_probs, residues[done : done + len(log_probs)]))
        done += len(log_probs)
        progress(len(log_probs))
    return np.concatenate(parts) if parts else np.empty(0)


def pseudo_log_likelihoods(
    engine: Engine,
    residues: NDArray[np.uint8],
    budget: int = BATCH_TOKENS,
    progress: Progress = no_progress,
    among: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Log p(x_i given all others), nats, of each residue [L]: each site masked alone, L passes packed by `budget`.

    Args:
        among: the only sites that are scored; the others are NaN.
    """
    framed = frame(residues)
    sites = np.flatnonzero((residues >= FIRST_RESIDUE) & (residues <= LAST_SCORED))
    sites = sites if among is None else np.intersect1d(sites, among)
    found = np.full(len(residues), math.nan)
    together = max(1, budget // len(framed))
    for start in range(0, len(sites), together):
        part = sites[start : start + together]
        copies = np.tile(framed, (len(part), 1))
        copies[np.arange(len(part)), part + 1] = MASK
        tokens, borders = inference.pack(list(copies))
        log_probs = engine.log_probs(tokens, borders, MASKED, borders[:-1] + part + 1)
        found[part] = _picked(log_probs, residues[part])
        progress(copies.size)
    return found


def _picked(log_probs: NDArray[np.floating], residues: NDArray[np.uint8]) -> NDArray[np.float64]:
    return log_probs[np.arange(len(residues)), residues].astype(np.float64)


def _row(record: io.Record, log_probs: NDArray[np.float64], method: str) -> Row:
    scored = (record.tokens >= FIRST_RESIDUE) & (record.tokens <= LAST_SCORED)
    count = int(scored.sum())
    if not np.isfinite(log_probs[scored]).all():
        # A checkpoint with such weights was refused, so finite ones have made a number that the type cannot hold.
        text = "record {n} ({id!r}) has a likelihood that is not finite: the model overflows on it; try {dtype}"
        raise DataError(Message(text, n=record.n, id=record.id, dtype=Argument("dtype", "float64")))
    ll = math.fsum(log_probs[scored]) if count else math.nan
    mean = ll / count if count else math.nan
    # math.exp raises where float64 would say inf.
    ppl = math.exp(-mean) if not mean < -700 else math.inf
    return Row(record.n, record.id, len(record), count, ll, mean, ppl, method, ",".join(io.flag_names(record.flags)))
