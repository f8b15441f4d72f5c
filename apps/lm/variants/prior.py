"""A prior of a family, mixed with a model: `--prior`.

The score of a substitution is (1 - w) times that of the model plus w times the log-odds of the prior; `mixing` says how
the weight w is found.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from protperf.errors import ConfigError
from protperf.lm.alignment.alignment import read_alignment
from protperf.lm.baselines.family import FamilyEngine
from protperf.lm.baselines.files import read as read_baseline
from protperf.lm.baselines.fit import fit_family
from protperf.lm.baselines.loading import baseline_engine, family_engine
from protperf.lm.baselines.manifest import is_baseline
from protperf.lm.tables.fill import file_digest
from protperf.lm.variants.odds import OddsScorer
from protperf.lm.variants.variant import Variant
from protperf.lm.variants.wild_type import WildType
from protperf.lm.watch import Progress, Watch, no_progress
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.variants.score import Scorer

_THETA = 0.8


@dataclass(frozen=True, slots=True)
class Prior:
    """A model of a family, where it is from, and the digest of that."""

    engine: FamilyEngine
    path: str
    digest: str | None


def read_prior(path: Path | None, watch: Watch | None = None) -> Prior | None:
    """The prior that a path names, if there is one: a baseline of a family, or an alignment, which is fitted.

    Raises:
        ConfigError: a baseline that knows no columns; DataError: not an alignment; FileError: it cannot be read.
    """
    if path is None:
        return None
    name = os.fspath(path)
    if not path.is_dir():
        fitted = fit_family(read_alignment(name), "site", _THETA, watch or Watch())
        return Prior(family_engine(fitted.kind, fitted.arrays), name, file_digest(name))
    if not is_baseline(path):
        text = "{prior} {path} is a directory without a baseline; give an alignment, or what protperf baseline wrote"
        raise ConfigError(Message(text, prior=Argument("prior"), path=name))
    found = read_baseline(path)
    engine = baseline_engine(found, "float64")
    if not isinstance(engine, FamilyEngine):
        text = "{prior} {path} is a {kind} model, which knows no family; give an alignment, or a site or pairwise model"
        raise ConfigError(Message(text, prior=Argument("prior"), path=name, kind=found.kind))
    return Prior(engine, name, found.step().manifest["files"]["model.safetensors"]["sha256"])


class MixedScorer:
    """The scores of a model, mixed with the log-odds of a prior; as `protperf.lm.variants.score.Scorer`."""

    has_lengths = False

    def __init__(self, scorer: Scorer, prior: Prior, wild_type: WildType, weight: float) -> None:
        self.name = scorer.name
        self._scorer, self._weight = scorer, weight
        self._odds = OddsScorer(prior.engine, wild_type)

    def check(self, variant: Variant) -> None:
        """Refuse a variant that one of the two has no score for.

        Raises:
            DataError: naming it.
        """
        self._scorer.check(variant)
        self._odds.check(variant)

    def tokens_read(self, variant: Variant) -> int:
        """About how many residues are read for a variant."""
        return self._scorer.tokens_read(variant)

    def score(self, variants: Sequence[Variant], progress: Progress = no_progress) -> NDArray[np.float64]:
        """Scores in nats [num_variants, 2]; the second column has no meaning here: NaN."""
        found = self._scorer.score(variants, progress)
        odds = self._odds.score(variants)
        return (1 - self._weight) * found + self._weight * odds
