"""Baselines: models made of counts, which every question can be put to that is put to a trained network."""
