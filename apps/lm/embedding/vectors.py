"""The vectors of sequences: hidden states of a model, pooled over the residues or as they are.

BOS and EOS are read with every sequence and are in no mean, no maximum and no vector per residue. Sequences are packed,
never padded; one that is read left to right is read in chunks with carried state if it is long. A network in Rust pools
the states where they are, in float64 or on a GPU; those of other engines, and of a long sequence for attention, are
pooled here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import DataError
from protperf.lm import inference
from protperf.lm.data.batches import frame
from protperf.lm.embedding.options import PER_RESIDUE, STORED_TYPES, EmbedOptions
from protperf.lm.engine import CAUSAL, MASKED, Engine, PoolingEngine
from protperf.lm.watch import Progress, no_progress
from protperf.network import Pool

Vectors = NDArray[np.floating]
_MODES = {"causal": CAUSAL, "masked": MASKED}
_BLOCK = 4096
"""Residues of which there is a copy in float64 at once."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of one record: for each array that was asked for [C], or [L, C] per residue, in the stored type."""

    n: int
    id: str
    length: int
    arrays: tuple[Vectors, ...]


def embed_batches(
    engine: Engine,
    records: Iterable[io.Record],
    options: EmbedOptions,
    mode: str,
    *,
    progress: Progress = no_progress,
) -> Iterator[tuple[list[io.Record], list[Embedded]]]:
    """Embed records lazily, in their order: each batch and its vectors.

    Args:
        mode: `masked` or `causal`.
        progress: called with the tokens read.

    Raises:
        DataError: a number that the stored type cannot hold.
    """
    together = 1 if options.deterministic else options.batch_tokens
    for batch in inference.in_batches(records, lambda record: len(record.tokens) + 2, together):
        # Not around the yield: what the caller does with a batch does not belong to this.
        with engine.computing(options.deterministic):
            vectors = _vectors(engine, [record.tokens for record in batch], options, mode, progress)
        yield batch, [_embedded(record, arrays, options) for record, arrays in zip(batch, vectors, strict=True)]


def _vectors(
    engine: Engine, sequences: list[NDArray[np.uint8]], options: EmbedOptions, mode: str, progress: Progress
) -> list[list[Vectors]]:
    """The arrays of each sequence."""
    names, layer = options.arrays, options.layer
    is_long = _is_long(engine, sequences, mode)
    # The query of attention left to right is the last token; of a long sequence all states have to be kept for it.
    if names == (PER_RESIDUE,) or not isinstance(engine, PoolingEngine) or (is_long and "attention" in names):
        states = hidden_states(engine, sequences, mode, layer, progress)
        return [[pooled(of_sequence, name, mode) for name in names] for of_sequence in states]
    if is_long:
        return [_pooled_in_chunks(engine, frame(sequences[0]), names, layer, progress)]
    tokens, borders = inference.pack([frame(x) for x in sequences])
    pools = [_pool(i, len(x) + 2, name, mode) for i, x in enumerate(sequences) for name in names]
    found = engine.pooled(tokens, borders, _MODES[mode], pools, layer)
    progress(len(tokens))
    return [list(found[i : i + len(names)]) for i in range(0, len(found), len(names))]


def _pool(sequence: int, length: int, name: str, mode: str) -> Pool:
    """What `pooled` does with the hidden states [L + 2, C] of a sequence of a batch."""
    if name in ("bos", "eos"):
        place = 0 if name == "bos" else length - 1
        return Pool(sequence, place, place + 1, "mean")
    return Pool(sequence, 1, length - 1, name, 0 if mode == "masked" else length - 1)


def _pooled_in_chunks(
    engine: PoolingEngine, tokens: NDArray[np.uint8], names: tuple[str, ...], layer: int, progress: Progress
) -> list[Vectors]:
    """Means, maxima and last states of a sequence read left to right, in memory that its length does not change."""
    length, state = inference.chunk_length(engine), engine.empty_state()
    found = {name: np.full(engine.config.model_dim, -math.inf if name == "max" else 0.0) for name in names}
    whole = {name: _pool(0, len(tokens), name, "causal") for name in names}
    for start in range(0, len(tokens), length):
        part = tokens[start : start + length]
        borders = {name: np.clip([pool.start - start, pool.end - start], 0, len(part)) for name, pool in whole.items()}
        here = {name: Pool(0, int(a), int(b), whole[name].kind) for name, (a, b) in borders.items() if a < b}
        rows = state.advance_pooled(part, np.array([0, len(part)]), list(here.values()), layer)
        for (name, pool), row in zip(here.items(), rows, strict=True):
            if name == "max":
                found[name] = np.maximum(found[name], row)
            else:
                found[name] += row * ((pool.end - pool.start) / (whole[name].end - whole[name].start))
        progress(len(part))
    return list(found.values())


def hidden_states(
    engine: Engine,
    sequences: Sequence[NDArray[np.uint8]],
    mode: str,
    layer: int = -1,
    progress: Progress = no_progress,
) -> list[Vectors]:
    """Hidden states [L + 2, C] of each sequence, BOS and EOS among them."""
    if _is_long(engine, sequences, mode):
        return [_in_chunks(engine, frame(sequences[0]), layer, progress)]
    tokens, borders = inference.pack([frame(x) for x in sequences])
    states = engine.hidden(tokens, borders, _MODES[mode], layer)
    progress(len(tokens))
    return np.split(states, borders[1:-1])


def _is_long(engine: Engine, sequences: Sequence[NDArray[np.uint8]], mode: str) -> bool:
    """Whether this is one sequence that is read in chunks."""
    return mode == "causal" and len(sequences) == 1 and len(sequences[0]) + 2 > inference.chunk_length(engine)


def _in_chunks(engine: Engine, tokens: NDArray[np.uint8], layer: int, progress: Progress) -> Vectors:
    length, state = inference.chunk_length(engine), engine.empty_state()
    found = np.empty((len(tokens), engine.config.model_dim), engine.dtype)
    for start in range(0, len(tokens), length):
        part = tokens[start : start + length]
        found[start : start + length] = state.advance_hidden(part, np.array([0, len(part)]), layer)
        progress(len(part))
    return found


def _embedded(record: io.Record, arrays: list[Vectors], options: EmbedOptions) -> Embedded:
    stored = tuple(_stored(array, options.stored_type, record) for array in arrays)
    return Embedded(record.n, record.id, len(record), stored)


def pooled(states: Vectors, name: str, mode: str) -> Vectors:
    """One array of a sequence from its hidden states [L + 2, C]: [C] in float64, or [L, C] per residue.

    Without residues, all that is taken over them is NaN.
    """
    if name == PER_RESIDUE:
        return states[1:-1]
    if name in ("bos", "eos"):
        return states[0 if name == "bos" else -1]
    residues = states[1:-1]
    if not len(residues):
        return np.full(states.shape[1], math.nan)
    if name == "mean":
        return np.asarray(residues.mean(0, dtype=np.float64))
    if name == "max":
        return np.asarray(residues.max(0), np.float64)
    return _attention(residues, states[0 if mode == "masked" else -1].astype(np.float64))


def _attention(residues: Vectors, query: Vectors) -> Vectors:
    """Sum of w_i h_i, where w is the softmax over the residues of sqrt(C) cos(h_i, q).

    It is attention with one query, a token that has seen the whole sequence, and no weights of its own. The cosine
    makes it independent of the scale of a layer; for states of norm sqrt(C), as after the last norm, sqrt(C) cos is the
    scaled dot product of attention.
    """
    # In blocks, for the copies in float64 are large. Not matrix products: their last bits depend on the threads.
    blocks = [residues[start : start + _BLOCK] for start in range(0, len(residues), _BLOCK)]
    cosines = np.concatenate([_cosines(block.astype(np.float64), query) for block in blocks])
    logits = math.sqrt(len(query)) * cosines
    weights = np.exp(logits - logits.max())
    shares = np.split(weights / weights.sum(), range(_BLOCK, len(residues), _BLOCK))
    sums = [(block * share[:, None]).sum(0) for block, share in zip(blocks, shares, strict=True)]
    return np.asarray(sum(sums))


def _cosines(rows: Vectors, query: Vectors) -> Vectors:
    norms = np.sqrt((rows**2).sum(1)) * math.sqrt(float((query**2).sum()))
    return np.asarray((rows * query).sum(1) / np.maximum(norms, np.finfo(np.float64).tiny))


def _stored(values: Vectors, dtype: str, record: io.Record) -> Vectors:
    with np.errstate(over="ignore"):
        stored = values.astype(STORED_TYPES[dtype])
    if np.isinf(stored).any():
        text = f"record {record.n} ({record.id!r}) has a number that {dtype} cannot hold; store it as f32"
        raise DataError(text)
    return stored
