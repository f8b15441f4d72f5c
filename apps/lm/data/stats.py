"""What a set of sequences is: counts, lengths, composition, odd residues, duplicates."""

from __future__ import annotations

from typing import Any

import numpy as np

from protperf.lm.alphabet import FIRST_RESIDUE, VOCABULARY
from protperf.lm.data.records import Records


def statistics(records: Records) -> dict[str, Any]:
    """Figures by name; shares of residues are of all residues, `flagged` counts records by flag of the reader."""
    lengths = np.diff(records.offsets)
    counts = np.bincount(records.tokens, minlength=len(VOCABULARY))
    distinct = len(np.unique(records.first_equal()))
    quartiles = np.percentile(lengths, (0, 25, 50, 75, 100)).astype(int).tolist() if len(lengths) else [0] * 5
    names = ("length_min", "length_q1", "length_median", "length_q3", "length_max")
    total = max(int(counts.sum()), 1)
    return {
        "sequences": len(records),
        "distinct": distinct,
        "duplicates": len(records) - distinct,
        "repeated_ids": len(records) - len(set(records.ids)),
        "rejected": records.rejected,
        "residues": int(counts.sum()),
        **dict(zip(names, quartiles, strict=True)),
        "length_mean": float(lengths.mean()) if len(lengths) else 0.0,
        **{f"share_{VOCABULARY[i]}": float(counts[i] / total) for i in range(FIRST_RESIDUE, len(VOCABULARY))},
        **{f"flagged_{name}": count for name, count in records.flagged.items()},
    }
