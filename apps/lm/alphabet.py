"""Token ids of the model's vocabulary, which is the scanner's (`protperf.io.VOCABULARY`)."""

from __future__ import annotations

from protperf import io

VOCABULARY = io.VOCABULARY
VOCAB_SIZE = len(VOCABULARY)
BOS, EOS, MASK = 0, 1, 2
FIRST_RESIDUE, NUM_STANDARD = 3, 20
"""The twenty standard residues are FIRST_RESIDUE .. FIRST_RESIDUE + NUM_STANDARD - 1."""
LAST_SCORED = 24
"""U and O follow the twenty and are scored; B, Z, J and X come next and are context only."""
