"""Sequences written left to right: a fixed number of them at a time, each with the state of what it has read.

A sequence is a function of the seed, its prompt and its number, and of nothing else: not of how many are asked for, nor
of those that are written at the same time. The draws come from a counter. The log-probabilities would differ in their
last bits with the number of rows of a matrix product, so that number never changes: `WIDTH` sequences are always read
on together, and where fewer are wanted the rest is thrown away. Memory does not grow with the number of sequences, nor,
with linear attention, with their length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protperf.errors import DataError
from protperf.lm.alphabet import BOS, EOS, FIRST_RESIDUE, LAST_SCORED
from protperf.lm.engine import CausalState, Engine, Tokens
from protperf.lm.generation.options import GenerateOptions
from protperf.lm.generation.sampling import STANDARD, Draws, Floats, forbidden, pick, probabilities
from protperf.lm.inference import chunk_length

WIDTH = 32
"""Sequences that are written at the same time."""
MAX_ATTEMPTS = 100
"""Times that one sequence is drawn before its copies of excluded sequences are an error."""

Refuse = Callable[[NDArray[np.uint8]], bool]
"""Whether a sequence is to be drawn again."""


@dataclass(frozen=True, slots=True)
class Written:
    """A sequence: its tokens with the prompt, its log-likelihood in nats, and whether it ended by itself."""

    index: int
    tokens: NDArray[np.uint8]
    score: float
    scored: int
    has_end: bool


def write_sequences(
    engine: Engine,
    prompt: Tokens,
    number: int,
    indices: Iterator[int],
    options: GenerateOptions,
    refuse: Refuse = lambda tokens: False,
) -> Iterator[Written]:
    """Write sequences lazily, in the order of their indices.

    Args:
        prompt: the tokens that each starts with; `number` is its place among the prompts.
        indices: numbers of the sequences; at most `WIDTH` more than are written are taken.

    Raises:
        DataError: a sequence was refused `MAX_ATTEMPTS` times.
    """
    with engine.computing(True):
        start = _read_prompt(engine, prompt)
    writer = _Writer(start, number, indices, options, refuse)
    while writer.is_busy:
        # Not around the yield: what the caller does with a sequence does not belong to this.
        with engine.computing(True):
            while not writer.has_ready:
                writer.step()
        yield from writer.ready()


@dataclass(frozen=True, slots=True)
class _Start:
    """What a prompt leaves: its tokens, the log-probabilities of its residues that are scored, those of what comes
    next [V], and the state of one sequence.
    """

    tokens: list[int]
    scores: list[float]
    log_probs: Floats
    state: CausalState


def _read_prompt(engine: Engine, prompt: Tokens) -> _Start:
    framed = np.concatenate([np.array([BOS], np.uint8), prompt])
    state, length = engine.empty_state(), chunk_length(engine)
    scores: list[float] = []
    log_probs = np.empty(0)
    for start in range(0, len(framed), length):
        part, follows = framed[start : start + length], prompt[start : start + length]
        rows = state.advance(part, np.array([0, len(part)])).astype(np.float64)
        scored = (follows >= FIRST_RESIDUE) & (follows <= LAST_SCORED)
        scores += rows[np.arange(len(follows)), follows][scored].tolist()
        log_probs = rows[-1]
    return _Start(prompt.tolist(), scores, log_probs, state)


@dataclass(slots=True)
class _Draft:
    """A sequence that is being written; its tokens begin with those of the prompt."""

    index: int
    attempt: int
    draws: Draws
    tokens: list[int]
    log_probs: list[float] = field(default_factory=list)


class _Writer:
    """Places in which drafts are written; a place whose draft is finished takes the next.

    The state has one more row than there are places: what the prompt leaves. It never reads on, and a place that starts
    a draft becomes a copy of it.
    """

    def __init__(
        self, start: _Start, number: int, indices: Iterator[int], options: GenerateOptions, refuse: Refuse
    ) -> None:
        self._start, self._number = start, number
        self._indices, self._options, self._refuse = indices, options, refuse
        self._state = start.state.select([0] * (WIDTH + 1))
        self._rows: Floats = np.tile(start.log_probs, (WIDTH, 1))
        self._order: list[int] = []
        self._done: dict[int, Written] = {}
        self._drafts = [self._next_draft() for _ in range(WIDTH)]

    @property
    def is_busy(self) -> bool:
        """Whether something is written or waits for one before it."""
        return any(draft is not None for draft in self._drafts) or bool(self._done)

    @property
    def has_ready(self) -> bool:
        """Whether the sequence whose turn it is is finished."""
        return bool(self._order) and self._order[0] in self._done

    def ready(self) -> Iterator[Written]:
        """Finished sequences whose turn it is."""
        while self.has_ready:
            yield self._done.pop(self._order.pop(0))

    def step(self) -> None:
        """Draw a residue for each draft, and let the model read them."""
        renewed = self._draw()
        if renewed:
            places = [WIDTH if place in renewed else place for place in range(WIDTH)]
            self._state = self._state.select([*places, WIDTH])
        tokens = np.full(WIDTH, FIRST_RESIDUE, np.uint8)
        for place, draft in enumerate(self._drafts):
            if draft is not None:
                tokens[place] = draft.tokens[-1]
        # The last row reads nothing.
        borders = np.array([*range(WIDTH + 1), WIDTH], np.int64)
        self._rows[:] = self._state.advance(tokens, borders)

    def _draw(self) -> set[int]:
        """Draw until each place has a residue to read; returns the places that start a draft, or have none."""
        renewed: set[int] = set()
        waiting = {place for place, draft in enumerate(self._drafts) if draft is not None}
        while waiting:
            allowed = np.tile(STANDARD, (WIDTH, 1))
            numbers = np.zeros(WIDTH)
            for place in waiting:
                draft = self._draft(place)
                allowed[place, EOS] = len(draft.tokens) >= self._options.min_len
                for residue in forbidden(draft.tokens, len(draft.tokens), self._options.max_repeat):
                    allowed[place, residue] = False
                numbers[place] = draft.draws.next()
            # All places at once, so that no bit depends on what the others hold.
            options = self._options
            chances = probabilities(self._rows, allowed, options.temperature, options.top_k, options.top_p)
            for place, token in enumerate(pick(chances, numbers).tolist()):
                if place in waiting and self._take(place, token):
                    renewed.add(place)
                    self._rows[place] = self._start.log_probs
            waiting = {place for place in waiting & renewed if self._is_unread(place)}
        return renewed

    def _is_unread(self, place: int) -> bool:
        draft = self._drafts[place]
        return draft is not None and not draft.log_probs

    def _take(self, place: int, token: int) -> bool:
        """Add a drawn token to a draft; returns whether that finished it, so that the place holds another, or none."""
        draft = self._draft(place)
        if token != EOS:
            draft.tokens.append(token)
            draft.log_probs.append(float(self._rows[place, token]))
            if len(draft.tokens) < self._options.max_len:
                return False
        tokens = np.array(draft.tokens, np.uint8)
        if self._refuse(tokens):
            self._drafts[place] = self._again(draft)
            return True
        scores = [*self._start.scores, *draft.log_probs]
        score = math.fsum(scores) if scores else math.nan
        self._done[draft.index] = Written(draft.index, tokens, score, len(scores), token == EOS)
        self._drafts[place] = self._next_draft()
        return True

    def _again(self, draft: _Draft) -> _Draft:
        attempt = draft.attempt + 1
        if attempt == MAX_ATTEMPTS:
            text = f"sequence {draft.index} was one of the excluded sequences {MAX_ATTEMPTS} times in a row; raise the "
            raise DataError(text + "temperature, or exclude fewer")
        return self._new_draft(draft.index, attempt)

    def _next_draft(self) -> _Draft | None:
        index = next(self._indices, None)
        if index is None:
            return None
        self._order.append(index)
        return self._new_draft(index, 0)

    def _new_draft(self, index: int, attempt: int) -> _Draft:
        draws = Draws(self._options.seed, self._number, index, attempt)
        return _Draft(index, attempt, draws, list(self._start.tokens))

    def _draft(self, place: int) -> _Draft:
        draft = self._drafts[place]
        assert draft is not None
        return draft
