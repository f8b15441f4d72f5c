"""Log-likelihoods of sequences: `ll` left to right, `pll` every residue given all others.

`ll` starts at p(x1 given BOS) and leaves EOS out; probabilities are over the whole vocabulary. B, Z, J and X are
context and are not scored. Sequences are packed, never padded; a long one is read in chunks with carried state, so
memory does not grow with its length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from protperf import io
from protperf.lm.alphabet import FIRST_RESIDUE, LAST_SCORED, MASK
from protperf.lm.data.batches import frame
from protperf.lm.model.network import CAUSAL, MASKED, ChunkState, Network
from protperf.lm.scoring.choices import BATCH_TOKENS, Progress, check_batch_tokens, nobody

CHUNK = 4096
"""Tokens of one sequence that are read at once."""
EXACT_CHUNK = 512
"""The same with exact attention, whose memory is chunk times length."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record's score: sums in nats; NaN where nothing is scored."""

    n: int
    id: str
    len: int
    scored: int
    ll: float
    ll_per_residue: float
    ppl: float
    method: str
    flags: str


def score_records(
    network: Network,
    records: Iterable[io.Record],
    method: str,
    *,
    batch_tokens: int = BATCH_TOKENS,
    deterministic: bool = False,
) -> Iterator[Row]:
    """Score records lazily, in their order; arguments are those of `score_batches`."""
    for _, rows in score_batches(network, records, method, batch_tokens=batch_tokens, deterministic=deterministic):
        yield from rows


def score_batches(
    network: Network,
    records: Iterable[io.Record],
    method: str,
    *,
    batch_tokens: int = BATCH_TOKENS,
    deterministic: bool = False,
    progress: Progress = nobody,
) -> Iterator[tuple[list[io.Record], list[Row]]]:
    """Score records lazily, in their order: each batch and its rows.

    Args:
        batch_tokens: tokens packed into one pass: of several sequences for `ll`, of one and its masked sites for `pll`.
        deterministic: one sequence a pass and one thread of torch: the same bits whatever the batch size, the other
            sequences and the number of threads.
        progress: told of the tokens read.

    Raises:
        ConfigError: `batch_tokens` below 1; raised at once.
    """
    check_batch_tokens(batch_tokens)
    return (
        (batch, _score_batch(network, batch, method, batch_tokens, deterministic, progress))
        for batch in _batches(records, 1 if deterministic or method == "pll" else batch_tokens)
    )


def _batches(records: Iterable[io.Record], budget: int) -> Iterator[list[io.Record]]:
    """Consecutive records of `budget` tokens in all, or one that is longer."""
    waiting: list[io.Record] = []
    total = 0
    for record in records:
        size = len(record.tokens) + 2
        if waiting and total + size > budget:
            yield waiting
            waiting, total = [], 0
        waiting.append(record)
        total += size
    if waiting:
        yield waiting


def log_likelihoods(
    network: Network, sequences: list[NDArray[np.uint8]], progress: Progress = nobody
) -> list[NDArray[np.float64]]:
    """Log p(x_i given x_<i), nats, of each residue of each sequence [L]."""
    if len(sequences) == 1 and len(sequences[0]) + 2 > CHUNK:
        chunk = EXACT_CHUNK if network.config.attention == "exact" else CHUNK
        return [chunked_log_likelihoods(network, sequences[0], chunk, progress)]
    framed = [frame(x)[:-1] for x in sequences]
    borders = np.cumsum([0, *(len(f) for f in framed)])
    tokens = torch.from_numpy(np.concatenate(framed))
    with torch.inference_mode():
        log_probs = functional.log_softmax(network(tokens, torch.from_numpy(borders), CAUSAL), -1).numpy()
    progress(sum(len(x) + 2 for x in sequences))
    # The row of token i holds the prediction of residue i: BOS stands before the first.
    return [_picked(log_probs[a : b - 1], x) for a, b, x in zip(borders, borders[1:], sequences, strict=False)]


def chunked_log_likelihoods(
    network: Network, residues: NDArray[np.uint8], chunk: int, progress: Progress = nobody
) -> NDArray[np.float64]:
    """The same for one sequence, `chunk` tokens at a time with carried state."""
    tokens, state, parts = frame(residues)[:-2], ChunkState(), []
    for start in range(0, len(tokens), chunk):
        with torch.inference_mode():
            logits = network.causal_chunk(torch.from_numpy(tokens[start : start + chunk].copy()), state)
            log_probs = functional.log_softmax(logits, -1).numpy()
        parts.append(_picked(log_probs, residues[start : start + chunk]))
        progress(len(log_probs))
    return np.concatenate(parts) if parts else np.empty(0)


def pseudo_log_likelihoods(
    network: Network, residues: NDArray[np.uint8], budget: int = BATCH_TOKENS, progress: Progress = nobody
) -> NDArray[np.float64]:
    """Log p(x_i given all others), nats, of each residue [L]: each site masked alone, L passes packed by `budget`."""
    framed = frame(residues)
    sites = np.flatnonzero((residues >= FIRST_RESIDUE) & (residues <= LAST_SCORED))
    found = np.full(len(residues), math.nan)
    together = max(1, budget // len(framed))
    for start in range(0, len(sites), together):
        part = sites[start : start + together]
        copies = np.tile(framed, (len(part), 1))
        copies[np.arange(len(part)), part + 1] = MASK
        borders = np.arange(len(part) + 1) * len(framed)
        with torch.inference_mode():
            logits = network(torch.from_numpy(copies.reshape(-1)), torch.from_numpy(borders), MASKED)
            rows = logits[torch.from_numpy(borders[:-1] + part + 1)]
            found[part] = _picked(functional.log_softmax(rows, -1).numpy(), residues[part])
        progress(copies.size)
    return found


def _picked(log_probs: NDArray[np.floating], residues: NDArray[np.uint8]) -> NDArray[np.float64]:
    return log_probs[np.arange(len(residues)), residues].astype(np.float64)


def _score_batch(
    network: Network,
    records: list[io.Record],
    method: str,
    batch_tokens: int,
    deterministic: bool,
    progress: Progress,
) -> list[Row]:
    num_threads = torch.get_num_threads()
    budget = BATCH_TOKENS if deterministic else batch_tokens
    if deterministic:
        # torch divides the sums of a matrix product by its number of threads.
        torch.set_num_threads(1)
    try:
        if method == "ll":
            values = log_likelihoods(network, [record.tokens for record in records], progress)
        else:
            values = [pseudo_log_likelihoods(network, record.tokens, budget, progress) for record in records]
    finally:
        if deterministic:
            torch.set_num_threads(num_threads)
    return [_row(record, log_probs, method) for record, log_probs in zip(records, values, strict=True)]


def _row(record: io.Record, log_probs: NDArray[np.float64], method: str) -> Row:
    scored = (record.tokens >= FIRST_RESIDUE) & (record.tokens <= LAST_SCORED)
    count = int(scored.sum())
    ll = math.fsum(log_probs[scored]) if count else math.nan
    mean = ll / count if count else math.nan
    # math.exp raises where float64 would say inf.
    ppl = math.exp(-mean) if not mean < -700 else math.inf
    return Row(record.n, record.id, len(record), count, ll, mean, ppl, method, ",".join(io.flag_names(record.flags)))
