"""Scores of every single change of a protein, as a table, a picture, and colours of a structure."""
