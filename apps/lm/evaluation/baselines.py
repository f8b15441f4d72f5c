"""Baselines next to a model: how well they predict the residues that the model is asked about.

Their probabilities are over the twenty residues alone, which favours them a little, as it does the unigram.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protperf.errors import ConfigError
from protperf.lm.alphabet import FIRST_RESIDUE, NUM_STANDARD
from protperf.lm.baselines.family import SubstitutionEngine
from protperf.lm.baselines.files import read as read_baseline
from protperf.lm.baselines.fit import fit_ngram
from protperf.lm.baselines.loading import baseline_engine
from protperf.lm.baselines.manifest import is_baseline
from protperf.lm.baselines.ngram import over_vocabulary
from protperf.lm.baselines.ngram_engine import NgramEngine
from protperf.lm.engine import Engine, Tokens
from protperf.lm.scoring.distribution import log_softmax, residue_log_probs
from protperf.lm.watch import Watch
from protperf.message import Argument, Message

_ORDER = 5


class Baselines:
    """An n-gram and a model of a family, or either, or neither."""

    def __init__(self, ngram: Engine | None = None, family: Engine | None = None) -> None:
        self._engines = (ngram, family)

    @classmethod
    def read(cls, baselines: Sequence[Path], train: Path | None, residues: str = "map") -> Baselines:
        """Read what directories hold; without an n-gram among them, it is counted from the training set.

        Raises:
            ConfigError: a directory without a baseline, or two of one sort; DataError, FileError: a file is at fault.
        """
        found: dict[bool, Engine] = {}
        for path in baselines:
            if not is_baseline(path):
                text = "{baseline} {path} holds no baseline; make one with protperf baseline"
                raise ConfigError(Message(text, baseline=Argument("baseline"), path=str(path)))
            engine = baseline_engine(read_baseline(path), "float64")
            is_family = isinstance(engine, SubstitutionEngine)
            if is_family in found:
                text = "{baseline} {path} is a second baseline of its sort; give one n-gram and one model of a family"
                raise ConfigError(Message(text, baseline=Argument("baseline"), path=str(path)))
            found[is_family] = engine
        if train is not None and False not in found:
            counted = fit_ngram([str(train)], "ngram", _ORDER, residues, Watch())
            found[False] = NgramEngine("ngram", over_vocabulary(counted.arrays["log_probs"]), "float64")
        return cls(found.get(False), found.get(True))

    def nats(self, tokens: Tokens) -> NDArray[np.float64]:
        """Minus the log-probability of each residue by the n-gram and by the family [L, 2].

        NaN where there is no such baseline, or the letter is none of the twenty. A model of a family is asked with
        every 16th residue masked.
        """
        found = np.full((len(tokens), 2), math.nan)
        places = np.flatnonzero((tokens >= FIRST_RESIDUE) & (tokens < FIRST_RESIDUE + NUM_STANDARD))
        for column, engine in enumerate(self._engines):
            if engine is not None and len(places):
                rows = log_softmax(residue_log_probs(engine, tokens)[places])
                found[places, column] = -rows[np.arange(len(places)), tokens[places] - FIRST_RESIDUE]
        return found
