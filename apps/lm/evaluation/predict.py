"""What a model says of the residues of records, batch by batch: left to right, or at sites that random masks hide.

A mask hides 15 % of the residues that can be scored, all at once, and is a function of the residues, the seed and its
number: other sequences, their order and the size of a batch change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.lm import inference
from protperf.lm.alphabet import FIRST_RESIDUE, MASK, NUM_STANDARD
from protperf.lm.data.batches import MASKED_FRACTION, frame
from protperf.lm.data.stream import Stream, generator
from protperf.lm.engine import CAUSAL, MASKED, Engine
from protperf.lm.evaluation.baselines import Baselines
from protperf.lm.evaluation.options import EvalOptions
from protperf.lm.evaluation.tally import Predictions


@dataclass(frozen=True, slots=True)
class Asked:
    """A sequence: its place in the set, its tokens [L], and what baselines say of its residues, nats [L, 2]."""

    place: int
    tokens: NDArray[np.uint8]
    baseline_nats: NDArray[np.float64]

    def predictions(self, log_probs: NDArray[np.floating], places: NDArray[np.int64]) -> Predictions:
        """What log-probabilities [n, vocabulary] and the baselines say of the residues at some places [n]."""
        residues, nats = self.tokens[places], self.baseline_nats[places]
        return Predictions.of(self.place, len(self.tokens), log_probs, residues, nats)


def modes_of(objective: str, options: EvalOptions) -> tuple[str, ...]:
    """The modes that a model of this objective is asked in."""
    causal = ("causal",) if objective in ("causal", "both") else ()
    return (*causal, *(("masked",) if objective in ("masked", "both") and options.masks else ()))


def predictions(
    engine: Engine, records: Iterable[io.Record], modes: tuple[str, ...], options: EvalOptions, baselines: Baselines
) -> Iterator[list[tuple[str, Predictions]]]:
    """What the model says of each record in each mode, and baselines with it; a list per batch."""
    together = 1 if options.deterministic else options.batch_tokens
    for batch in inference.in_batches(enumerate(records), lambda one: len(one[1].tokens) + 2, together):
        sequences = [Asked(i, one.tokens, baselines.nats(one.tokens)) for i, one in batch if len(one.tokens)]
        found: list[tuple[str, Predictions]] = []
        with engine.computing(options.deterministic):
            if "causal" in modes and sequences:
                found += [("causal", one) for one in _causal(engine, sequences)]
            if "masked" in modes:
                masks = [_masked(engine, sequences, options.seed, number) for number in range(options.masks)]
                # All that was asked about a sequence is one, so that it counts once.
                found += [("masked", _joined(list(parts))) for parts in zip(*masks, strict=True)]
        yield found


def _causal(engine: Engine, sequences: list[Asked]) -> Iterator[Predictions]:
    if len(sequences) == 1 and len(sequences[0].tokens) + 2 > inference.CHUNK:
        done, asked = 0, sequences[0]
        parts = []
        for log_probs in inference.chunked_log_probs(engine, frame(asked.tokens)[:-2]):
            parts.append(asked.predictions(log_probs, np.arange(done, done + len(log_probs))))
            done += len(log_probs)
        yield _joined(parts)
        return
    tokens, borders = inference.pack([frame(x.tokens)[:-1] for x in sequences])
    log_probs = engine.log_probs(tokens, borders, CAUSAL)
    for x, start in zip(sequences, borders.tolist(), strict=False):
        yield x.predictions(log_probs[start : start + len(x.tokens)], np.arange(len(x.tokens)))


def _joined(parts: list[Predictions]) -> Predictions:
    names = ("residues", "nats", "confidence", "hits", "baseline_nats")
    return Predictions(
        parts[0].place, parts[0].length, **{x: np.concatenate([getattr(part, x) for part in parts]) for x in names}
    )


def _masked(engine: Engine, sequences: list[Asked], seed: int, number: int) -> Iterator[Predictions]:
    sites = [hidden(x.tokens, seed, number) for x in sequences]
    asked = [(x, at) for x, at in zip(sequences, sites, strict=True) if len(at)]
    if not asked:
        return
    copies = []
    for x, at in asked:
        copy = frame(x.tokens)
        copy[at + 1] = MASK
        copies.append(copy)
    tokens, borders = inference.pack(copies)
    rows = np.concatenate([start + at + 1 for start, (_, at) in zip(borders.tolist(), asked, strict=False)])
    log_probs, done = engine.log_probs(tokens, borders, MASKED, rows), 0
    for x, at in asked:
        yield x.predictions(log_probs[done : done + len(at)], at)
        done += len(at)


def hidden(residues: NDArray[np.uint8], seed: int, number: int) -> NDArray[np.int64]:
    """The sites that a mask hides, in order; where a residue can be scored there is at least one."""
    candidates = np.flatnonzero((residues >= FIRST_RESIDUE) & (residues < FIRST_RESIDUE + NUM_STANDARD))
    if not len(candidates):
        return candidates
    mark = int(io.checksums(residues, np.array([0, len(residues)]))[0])
    count = max(1, round(MASKED_FRACTION * len(candidates)))
    return np.sort(generator(seed, Stream.EVALUATION_MASK, mark, number).choice(candidates, count, replace=False))
