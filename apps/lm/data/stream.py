"""Random numbers that are a function of a key: a seed, what they are for, and a place such as a step or an index."""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What random numbers are for. With one seed, each use has numbers of its own; runs are resumed by these values."""

    ORDER = 1
    CROP = 2
    VALIDATION_MASK = 3
    MODE = 4
    MASK = 5
    DROPOUT = 6
    READING = 7
    SPLIT = 8
    EVALUATION_MASK = 9
    SAMPLE = 10


def generator(*key: int) -> np.random.Generator:
    """Random numbers that are a function of a key."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
