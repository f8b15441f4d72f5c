"""Vectors for sequences: the hidden states of a model, pooled or per residue."""
