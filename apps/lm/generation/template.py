"""A template of which some positions are drawn by a model that was trained with masks.

Blanks are filled in passes: what a pass fills is drawn from the predictions at the masks that are left. Positions that
are drawn again are visited in sweeps, each masked alone and drawn given all others (Gibbs sampling: Geman and Geman
1984, IEEE PAMI 6, 721). A sequence is read by itself, so that it does not depend on others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protperf import io
from protperf.errors import ConfigError
from protperf.lm.alphabet import MASK
from protperf.lm.data.batches import frame
from protperf.lm.engine import MASKED, Engine
from protperf.lm.generation.options import BLANK, SWEEPS, GenerateOptions, parse_positions
from protperf.lm.generation.sampling import STANDARD, Draws, Floats, forbidden, pick, probabilities
from protperf.lm.scoring.likelihood import pseudo_log_likelihoods
from protperf.message import Argument, Message


@dataclass(frozen=True, slots=True)
class Template:
    """Tokens [L] with masks where something is to be filled, and the positions that are drawn, from 0."""

    tokens: NDArray[np.uint8]
    drawn: NDArray[np.int64]

    @property
    def blanks(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.tokens == MASK)


def read_template(text: str, options: GenerateOptions, residues: str = "map") -> Template:
    """The template that text describes.

    Raises:
        ConfigError: it has no blanks to fill, no position to draw again, a fixed blank, or fewer positions than are
        fixed; FastaError: residues that the policy does not accept.
    """
    name = Argument("template")
    letters, blank = text.strip(), np.array([letter == BLANK for letter in text.strip()], bool)
    # Any residue may stand for a blank while the others are read.
    tokens, _ = io.encode(letters.replace(BLANK, "A"), residues=residues, name="<template>")
    if len(tokens) != len(letters):
        raise ConfigError(
            Message("{name} has gaps or a stop, so that positions cannot be counted; take them out", name=name)
        )
    tokens = tokens.copy()
    tokens[blank] = MASK
    drawn = np.flatnonzero(blank) if options.fix_positions is None else _not_fixed(options.fix_positions, blank)
    if not len(drawn):
        what = f"has no {BLANK} to fill" if options.infill else "has no position that is not fixed"
        raise ConfigError(Message("{name} {what}", name=name, what=what))
    return Template(tokens, drawn)


def _not_fixed(ranges: str, blank: NDArray[np.bool_]) -> NDArray[np.int64]:
    fixed = np.zeros(len(blank), bool)
    for first, last in parse_positions(ranges):
        if last > len(blank):
            text = "{name}: {last} is past the end of the template, which has {length} positions"
            raise ConfigError(Message(text, name=Argument("fix_positions"), last=last, length=len(blank)))
        fixed[first - 1 : last] = True
    if (fixed & blank).any():
        place = int(np.flatnonzero(fixed & blank)[0]) + 1
        text = "{name}: position {place} of the template is a {blank}, which cannot be kept"
        raise ConfigError(Message(text, name=Argument("fix_positions"), place=place, blank=BLANK))
    return np.flatnonzero(~fixed)


def drawn_from(engine: Engine, template: Template, options: GenerateOptions, draws: Draws) -> NDArray[np.uint8]:
    """A sequence: the template with its blanks filled, and its free positions drawn again."""
    tokens = template.tokens.copy()
    blanks = template.blanks
    steps = options.steps if options.infill else None
    for count in _shares(len(blanks), steps or len(blanks)):
        _fill(engine, tokens, count, options, draws)
    if options.fix_positions is not None:
        for _ in range(options.steps or SWEEPS):
            for turn in draws.permutation(len(template.drawn)):
                place = int(template.drawn[turn])
                tokens[place] = MASK
                row = _log_probs(engine, tokens, np.array([place]))[0]
                tokens[place] = _drawn(row, tokens, place, options, draws)
    return tokens


def _shares(total: int, steps: int) -> Iterator[int]:
    """Blanks that each pass fills, as even as can be and at least one."""
    for step in range(min(steps, total)):
        yield total * (step + 1) // min(steps, total) - total * step // min(steps, total)


def _fill(engine: Engine, tokens: NDArray[np.uint8], count: int, options: GenerateOptions, draws: Draws) -> None:
    """Fill `count` of the blanks from one pass of the model, in place."""
    blanks = np.flatnonzero(tokens == MASK)
    rows = _log_probs(engine, tokens, blanks)
    if options.order == "certain":
        # Of equally certain ones the first.
        order = np.argsort(-rows[:, STANDARD].max(-1), kind="stable").tolist()
    else:
        order = draws.permutation(len(blanks))
    for turn in order[:count]:
        place = int(blanks[turn])
        tokens[place] = _drawn(rows[turn], tokens, place, options, draws)


def _drawn(row: Floats, tokens: NDArray[np.uint8], place: int, options: GenerateOptions, draws: Draws) -> int:
    allowed = STANDARD.copy()
    for residue in forbidden(tokens.tolist(), place, options.max_repeat):
        allowed[residue] = False
    chances = probabilities(row, allowed, options.temperature, options.top_k, options.top_p)
    return int(pick(chances, np.array(draws.next())))


def _log_probs(engine: Engine, tokens: NDArray[np.uint8], places: NDArray[np.int64]) -> Floats:
    framed = frame(tokens)
    found = engine.log_probs(framed, np.array([0, len(framed)]), MASKED, places + 1)
    return found.astype(np.float64)


def score_of(engine: Engine, tokens: NDArray[np.uint8], template: Template) -> float:
    """Sum over the drawn positions of log p(residue given all others), each masked alone, nats."""
    return math.fsum(pseudo_log_likelihoods(engine, tokens, among=template.drawn)[template.drawn])
