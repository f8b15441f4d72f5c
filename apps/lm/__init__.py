"""Protein language models."""
