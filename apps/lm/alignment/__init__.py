"""Alignments of a family: read from files, and weighed by their relatives."""
