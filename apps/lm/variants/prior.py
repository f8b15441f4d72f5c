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
from protperf.lm.alignment.align import aligned_to
from protperf.lm.alignment.alignment import Alignment, NotAligned, codes_of, read_alignment
from protperf.lm.baselines.family import FamilyEngine
from protperf.lm.baselines.files import read as read_baseline
from protperf.lm.baselines.fit import fit_family, is_complete
from protperf.lm.baselines.loading import baseline_engine, family_engine
from protperf.lm.baselines.manifest import is_baseline
from protperf.lm.tables.fill import file_digest
from protperf.lm.variants.odds import OddsScorer
from protperf.lm.variants.scorer import Scorer
from protperf.lm.variants.variant import Variant
from protperf.lm.variants.wild_type import WildType
from protperf.lm.watch import Progress, Watch, no_progress
from protperf.message import Argument, Message

if TYPE_CHECKING:
    from protperf.lm.loading import LoadedModel

_THETA = 0.8
_LEAST_ROWS = 50
"""Rows from which pairs of columns say more than columns alone, as mutants of a beta-lactamase show."""
_MAX_TERMS = 2e9
"""Rows times pairs of columns that are fitted in some minutes."""
_MAX_COLUMNS = 800
"""Columns whose couplings take a gigabyte."""


@dataclass(frozen=True, slots=True)
class Prior:
    """A model of a family, what it is called, and the digest of what it came from."""

    engine: FamilyEngine
    name: str
    digest: str | None


def read_prior(path: Path | None, wild_type: WildType, watch: Watch | None = None) -> Prior | None:
    """The prior that a path names, if there is one.

    It is a baseline of a family, or an alignment, or sequences, which are aligned to the wild type. The last two are
    fitted: pairs of columns, unless there are too few rows for it, or too many to wait for.

    Raises:
        ConfigError: a baseline that knows no columns; DataError: not a family; FastaError, FileError: a file is at
        fault, or it cannot be read.
    """
    if path is None:
        return None
    name = os.fspath(path)
    if not path.is_dir():
        return _fitted(name, wild_type, watch or Watch())
    if not is_baseline(path):
        text = "{prior} {path} is a directory without a baseline; give a family, or what protperf baseline wrote"
        raise ConfigError(Message(text, prior=Argument("prior"), path=name))
    found = read_baseline(path)
    engine = baseline_engine(found, "float64")
    if not isinstance(engine, FamilyEngine):
        text = "{prior} {path} is a {kind} model, which knows no family; give a family, or a site or pairwise model"
        raise ConfigError(Message(text, prior=Argument("prior"), path=name, kind=found.kind))
    return Prior(engine, name, found.step().manifest["files"]["model.safetensors"]["sha256"])


def advise_prior(models: Sequence[LoadedModel]) -> str | None:
    """What to say where no prior was named, if one of the models was trained on a family."""
    for model in models:
        options = model.step.manifest.get("options")
        if isinstance(options, dict) and options.get("weights") == "relatives":
            text = "note: {model} was trained on a family; its sequences, named by {prior}, make the ranking better"
            return Message(text, model=model.step.name, prior=Argument("prior"))
    return None


def _fitted(name: str, wild_type: WildType, watch: Watch) -> Prior:
    try:
        alignment = read_alignment(name)
    except NotAligned:
        if name == "-":
            # It cannot be read again.
            raise
        alignment = aligned_to(wild_type.id, codes_of(wild_type.tokens), name, watch)
    kind = kind_for(alignment)
    fitted = fit_family(alignment, kind, _THETA, watch)
    called = f"{name} ({kind} model of {len(alignment):,} row{'s' * (len(alignment) != 1)})"
    return Prior(family_engine(fitted.kind, fitted.arrays), called, file_digest(name))


def kind_for(alignment: Alignment) -> str:
    """The kind of model that says most of a family, and is fitted while one waits for it."""
    num_rows, num_columns = is_complete(alignment.codes).sum(), alignment.num_columns
    is_quick = num_rows * num_columns**2 <= _MAX_TERMS and num_columns <= _MAX_COLUMNS
    return "pairwise" if num_rows >= _LEAST_ROWS and is_quick else "site"


class MixedScorer:
    """The scores of a model, mixed with the log-odds of a prior; as `Scorer`."""

    has_lengths = False

    def __init__(self, scorer: Scorer, odds: OddsScorer, weight: float) -> None:
        self.name = scorer.name
        self._scorer, self._odds, self._weight = scorer, odds, weight

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
