"""Trained models as files for other libraries."""
