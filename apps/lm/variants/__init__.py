"""Scores of variants of one protein: the difference that substitutions, deletions and insertions make."""
