"""Scores of variants by one model or the mean of several, batch by batch in the order of the variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protperf.errors import ConfigError
from protperf.lm.baselines.family import FamilyEngine, Member, SubstitutionEngine
from protperf.lm.direction import choose_direction, refuse_direction
from protperf.lm.engine import Engine
from protperf.lm.variants.conservation import ConservedScorer
from protperf.lm.variants.full import BothReadings, FullScorer
from protperf.lm.variants.mixing import mix
from protperf.lm.variants.odds import OddsScorer
from protperf.lm.variants.options import StrategyOptions, choose_strategy
from protperf.lm.variants.prior import MixedScorer, Prior
from protperf.lm.variants.scorer import Scorer
from protperf.lm.variants.sites import SiteScorer
from protperf.lm.variants.variant import Variant
from protperf.lm.variants.wild_type import WildType
from protperf.lm.watch import Progress, no_progress
from protperf.message import Argument, Message

_PASSES = 16
"""A batch of variants costs so many passes over the wild type: what all of them share is read once per batch."""
_VARIANTS = 4096
"""The most variants of a batch, so that a table grows steadily where they cost nothing."""


class Ensemble:
    """The scorers of one model or more; their mean is the score."""

    def __init__(
        self, engines: Sequence[Engine], wild_type: WildType, options: StrategyOptions, prior: Prior | None = None
    ) -> None:
        """Choose the strategies.

        Args:
            prior: a model of the family to mix with each of the models.
        """
        self.wild_type, self.prior = wild_type, prior
        self.scorers: list[Scorer] = [make_scorer(engine, wild_type, options) for engine in engines]
        self.mixtures = [] if prior is None else [mix(engine, prior.engine) for engine in engines]
        if prior is not None:
            odds = OddsScorer(prior.engine, wild_type)
            mixed = zip(self.scorers, self.mixtures, strict=True)
            self.scorers = [MixedScorer(scorer, odds, mixture.weight) for scorer, mixture in mixed]
        self._is_weighed = options.conservation == "on" or (options.conservation == "auto" and prior is not None)
        if self._is_weighed:
            families = engines if prior is None else [prior.engine]
            members = [_member_of(family, wild_type) for family in families]
            # The family of a prior is that of all models.
            members *= len(engines) // len(members)
            self.scorers = [ConservedScorer(*pair) for pair in zip(self.scorers, members, strict=True)]
        self._budget = _PASSES * max(options.batch_tokens, len(wild_type) + 2)

    @property
    def has_lengths(self) -> bool:
        """Whether every model has a form of the score per residue."""
        return all(scorer.has_lengths for scorer in self.scorers)

    @property
    def methods(self) -> tuple[str, ...]:
        """How scores come about, in words: each strategy once, and what is done with it."""
        mixed = ["prior"] if self.prior is not None else []
        weighed = ["by conservation"] if self._is_weighed else []
        return tuple(dict.fromkeys([*(scorer.name for scorer in self.scorers), *mixed, *weighed]))

    def notes(self) -> list[str]:
        """What there is to say of the prior and its weights, and of conservation."""
        said = [f"prior {self.prior.name}, {mixture}" for mixture in self.mixtures if self.prior is not None]
        return [*said, *(["scores are weighed by how conserved each column is"] if self._is_weighed else [])]

    def facts(self) -> dict[str, Any]:
        """What decides the scores besides the models, by name."""
        names = [scorer.name for scorer in self.scorers]
        facts: dict[str, Any] = {"strategy": names, "conservation": self._is_weighed}
        if self.prior is not None:
            weights = [mixture.weight for mixture in self.mixtures]
            facts |= {"prior_sha256": self.prior.digest, "prior_weights": weights}
        return facts

    def check(self, variant: Variant) -> None:
        """Refuse a variant that one of the models has no score for.

        Raises:
            DataError: naming what does.
        """
        for scorer in self.scorers:
            scorer.check(variant)

    def size(self, variant: Variant | None) -> int:
        """What a variant counts for in a batch of at most `budget`."""
        least = -(-self._budget // _VARIANTS)
        read = 0 if variant is None else max(scorer.tokens_read(variant) for scorer in self.scorers)
        return max(least, read)

    @property
    def budget(self) -> int:
        return self._budget

    def score(self, variants: Sequence[Variant], progress: Progress = no_progress) -> NDArray[np.float64]:
        """Scores of each model and their form per residue [num_variants, num_models, 2]."""
        return np.stack([scorer.score(variants, progress) for scorer in self.scorers], axis=1)


def _member_of(family: Engine, wild_type: WildType) -> Member:
    """The wild type in the columns that an engine knows.

    Raises:
        ConfigError: it knows none; DataError: the wild type is not of the family.
    """
    if not isinstance(family, FamilyEngine):
        text = "{conservation} needs the columns of a family; name its alignment or its sequences by {prior}"
        raise ConfigError(Message(text, conservation=Argument("conservation", "on"), prior=Argument("prior")))
    return family.odds(wild_type.tokens)


def make_scorer(engine: Engine, wild_type: WildType, options: StrategyOptions) -> Scorer:
    """The scorer of a strategy.

    Raises:
        ConfigError: the model was not trained for it, or not in the direction that was asked for.
    """
    if isinstance(engine, SubstitutionEngine) and options.strategy == "auto":
        return OddsScorer(engine, wild_type)
    strategy = choose_strategy(engine.config.objective, options.strategy)
    if strategy == "full":
        direction = choose_direction(engine.config, options.direction)
        if direction == "both":
            return BothReadings(engine, wild_type, options.batch_tokens, options.deterministic)
        return FullScorer(engine, wild_type, options.batch_tokens, options.deterministic, direction)
    if options.direction in ("reverse", "both"):
        raise refuse_direction(options.direction, Argument("strategy", "full"))
    return SiteScorer(engine, wild_type, strategy, options.batch_tokens, options.deterministic)
