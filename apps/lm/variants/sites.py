"""Strategies that add up sites: `wt`, `masked` and `masked-joint`. They know substitutions only.

Each is a sum over the substituted sites of log p(new residue) - log p(old residue); they differ in what the model sees
where it predicts these: the wild type as it is (`wt`), the wild type with this site masked (`masked`), or with all
sites of the variant masked (`masked-joint`). A causal model, which has no masks, reads `wt` left to right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protperf.errors import DataError
from protperf.lm import inference
from protperf.lm.alphabet import BOS, MASK
from protperf.lm.data.batches import frame
from protperf.lm.engine import MASKED, Engine
from protperf.lm.variants.variant import Variant
from protperf.lm.variants.wild_type import WildType
from protperf.lm.watch import Progress, no_progress
from protperf.message import Argument, Message

Sites = tuple[int, ...]
Rows = Sequence[NDArray[np.floating]] | NDArray[np.floating]
"""Log-probabilities over the vocabulary, one row per site."""


class SiteScorer:
    """Sums over sites of differences of log-probabilities.

    Attributes:
        name: `wt`, `masked` or `masked-joint`.
    """

    has_lengths = False

    def __init__(
        self, engine: Engine, wild_type: WildType, strategy: str, batch_tokens: int, deterministic: bool
    ) -> None:
        self.name = strategy
        self._engine, self._wild, self._deterministic = engine, wild_type, deterministic
        self._framed = frame(wild_type.tokens)
        self._together = 1 if deterministic else max(1, batch_tokens // len(self._framed))
        self._alone: dict[int, NDArray[np.floating]] = {}
        if strategy == "wt":
            with engine.computing(deterministic):
                self._alone = dict(enumerate(self._unmasked()))

    def check(self, variant: Variant) -> None:
        """Refuse a variant that changes the length.

        Raises:
            DataError: naming what scores such variants.
        """
        if variant.is_substitution:
            return
        text = "{name} changes the length of the protein, which {strategy} does not score; "
        if self._engine.config.objective == "masked":
            text += "compare the sequences themselves with protperf score --method pll"
        else:
            text += "use {full}"
        strategies = {"strategy": Argument("strategy", self.name), "full": Argument("strategy", "full")}
        raise DataError(Message(text, name=variant.name(self._wild), **strategies))

    def tokens_read(self, variant: Variant) -> int:
        """Residues read for a variant alone; many share what they read."""
        return 0 if self.name == "wt" else len(self._framed) * (len(variant.edits) if self.name == "masked" else 1)

    def score(self, variants: Sequence[Variant], progress: Progress = no_progress) -> NDArray[np.float64]:
        """Scores in nats [num_variants, 2], in the order of the variants; the second column has no meaning here: NaN.

        Args:
            progress: called with the number of variants that are done.
        """
        found = np.full((len(variants), 2), math.nan)
        with self._engine.computing(self._deterministic):
            rows = self._log_probs([variant.sites for variant in variants])
        for i, variant in enumerate(variants):
            found[i, 0] = math.fsum(
                float(row[edit.inserted[0]]) - float(row[self._wild.tokens[edit.start]])
                for row, edit in zip(rows[variant.sites], variant.edits, strict=True)
            )
        progress(len(variants))
        return found

    def _log_probs(self, wanted: list[Sites]) -> dict[Sites, Rows]:
        """Log-probabilities over the vocabulary at each site of each of these sets of sites."""
        sets = list(dict.fromkeys(wanted))
        joint = [sites for sites in sets if self.name == "masked-joint" and len(sites) > 1]
        found: dict[Sites, Rows] = {}
        for start in range(0, len(joint), self._together):
            part = joint[start : start + self._together]
            found |= zip(part, self._masked(part), strict=True)
        alone = [sites for sites in sets if sites not in found]
        self._mask_alone({site for sites in alone for site in sites} - self._alone.keys())
        return found | {sites: [self._alone[site] for site in sites] for sites in alone}

    def _mask_alone(self, sites: set[int]) -> None:
        """Rows of sites that are masked alone.

        The sites of one pass are the same whichever of them are asked for first: the last bits of a row depend on what
        it is computed with, and a table that is continued has to get the bits of one that was not interrupted.
        """
        for first in sorted({site - site % self._together for site in sites}):
            together = range(first, min(first + self._together, len(self._wild)))
            rows = self._masked([(site,) for site in together])
            self._alone |= {site: row[0] for site, row in zip(together, rows, strict=True)}

    def _masked(self, sets: list[Sites]) -> list[NDArray[np.floating]]:
        """One copy of the wild type for each set of sites, masked there: the rows of these sites."""
        copies = np.tile(self._framed, (len(sets), 1))
        for copy, sites in zip(copies, sets, strict=True):
            copy[np.array(sites) + 1] = MASK
        tokens, borders = inference.pack(list(copies))
        places = [start + np.array(sites, np.int64) + 1 for start, sites in zip(borders, sets, strict=False)]
        rows = self._engine.log_probs(tokens, borders, MASKED, np.concatenate(places))
        return np.split(rows, np.cumsum([len(sites) for sites in sets])[:-1])

    def _unmasked(self) -> NDArray[np.floating]:
        if self._engine.config.objective == "causal":
            framed = np.concatenate([[BOS], self._wild.tokens]).astype(np.uint8)
            return np.concatenate(list(inference.chunked_log_probs(self._engine, framed)))[:-1]
        rows = np.arange(1, len(self._framed) - 1)
        return self._engine.log_probs(self._framed, np.array([0, len(self._framed)]), MASKED, rows)
