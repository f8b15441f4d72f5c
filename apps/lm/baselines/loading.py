"""A baseline's directory as an `Engine`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protperf.lm.alignment.alignment import GAP
from protperf.lm.alphabet import NUM_STANDARD
from protperf.lm.baselines.family import BlosumEngine, FamilyEngine, SiteModel
from protperf.lm.baselines.files import Arrays, Baseline
from protperf.lm.baselines.manifest import TENSORS
from protperf.lm.baselines.ngram import MAX_ORDER, NUM_SYMBOLS, over_vocabulary
from protperf.lm.baselines.ngram_engine import NgramEngine
from protperf.lm.engine import Engine
from protperf.lm.storage.plain_file import broken
from protperf.pairwise import Pairwise

_WITHOUT = "log_probs_without_members"


def baseline_engine(baseline: Baseline, dtype: str) -> Engine:
    """The engine of a baseline that was read.

    Raises:
        CheckpointError: its numbers are not those of its kind.
    """
    if baseline.kind == "blosum":
        return BlosumEngine(dtype)
    if baseline.kind in ("unigram", "ngram"):
        log_probs = baseline.array("log_probs", np.float32, None, NUM_SYMBOLS)
        if len(log_probs) not in [NUM_SYMBOLS**before for before in range(MAX_ORDER)]:
            raise broken(baseline.path / TENSORS, f"has {len(log_probs)} contexts, which no order of n-grams has")
        return NgramEngine(baseline.kind, over_vocabulary(log_probs), dtype)
    num_columns = len(baseline.array("log_probs", np.float32, None, NUM_STANDARD))
    if baseline.kind == "site" or _WITHOUT in baseline.arrays:
        baseline.array(_WITHOUT, np.float32, num_columns, NUM_STANDARD)
    if baseline.kind == "pairwise":
        baseline.array("fields", np.float32, num_columns, NUM_STANDARD)
        baseline.array("couplings", np.float32, num_columns, num_columns, NUM_STANDARD, NUM_STANDARD)
    members = baseline.array("members", np.int64, None, num_columns)
    query = baseline.array("query", np.int64, num_columns)
    for name, rows in (("members", members), ("query", query)):
        if not _are_codes(rows):
            raise broken(baseline.path / TENSORS, f"has numbers in {name} that are not codes of residues")
    return family_engine(baseline.kind, baseline.arrays, dtype)


def family_engine(kind: str, arrays: Arrays, dtype: str = "float64") -> FamilyEngine:
    """The engine of a model of a family that was fitted or read and checked."""
    is_pairwise = kind == "pairwise"
    model = Pairwise(arrays["fields"], arrays["couplings"]) if is_pairwise else SiteModel(arrays["log_probs"])
    models = model, SiteModel(arrays[_WITHOUT]) if _WITHOUT in arrays else model
    rows = arrays["query"].astype(np.uint8), arrays["members"].astype(np.uint8)
    return FamilyEngine(kind, arrays["log_probs"], models, *rows, dtype)


def _are_codes(rows: NDArray[np.int64]) -> bool:
    return bool(((rows >= 0) & (rows <= GAP)).all())
