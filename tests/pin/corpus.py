"""The calls of attention whose bits are pinned: the shapes of the conformance tests, extremes, long sequences, states.

Inputs come from integers and exact sums, so that they are the same numbers on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
MAPS = ("positive", "hyperbolic", "smreg", "relu", "elu1", "trigonometric")
# Of these every fourth shape alone: their families are those of the maps above.
FURTHER_MAPS = (
    "gaussian", "fourier", "exp", "identity", "abs", "relu2", "square", "sigmoid", "tanh", "gelu", "cos",
)  # fmt: skip
# Maps that take any input, and inputs themselves in place of projections.
_ACTIVATIONS = ("relu", "elu1", "identity", "abs", "relu2", "square", "sigmoid", "tanh", "gelu", "cos")
# Waves, whose denominators need small inputs.
_WAVES = ("trigonometric", "fourier", "cos")

# Lengths around the lanes of 4, 8 and 16 and around the chunk of 64; odd head_dim, value_dim and num_features.
SHAPES = (
    (0, 4, 3, 5),
    (1, 1, 1, 1),
    (2, 1, 3, 1),
    (3, 2, 5, 3),
    (5, 5, 2, 7),
    (8, 8, 9, 16),
    (11, 12, 0, 6),
    (15, 15, 16, 17),
    (16, 16, 17, 31),
    (17, 17, 15, 33),
    (31, 31, 33, 65),
    (33, 32, 31, 64),
    (63, 33, 1, 63),
    (64, 63, 64, 31),
    (65, 64, 65, 33),
    (127, 65, 3, 17),
    (129, 6, 7, 37),
    (200, 12, 3, 21),
    (9, 17, 5, 129),
    (6, 127, 4, 255),
    (13, 13, 14, 255),
    (14, 14, 129, 2),
    (150, 64, 64, 256),
)
# Scale of queries, scale of keys, and how key lengths run along the sequence. Most of these make rows that are computed
# again with references of their own.
EXTREMES = (
    (50.0, 1.0, (1.0, 1.0)),
    (1.0, 20.0, (1.0, 1.0)),
    (20.0, 20.0, (1.0, 1.0)),
    (3.0, 40.0, (0.05, 1.0)),
    (3.0, 40.0, (1.0, 0.05)),
    (1.8e-5, 1.8e3, (1.0, 1.0)),
    (1.8e3, 1.8e3, (1.0, 1.0)),
    (1e-30, 1e-30, (1.0, 1.0)),
    (1e6, 1e6, (1.0, 1.0)),
    (1e38, 1e38, (1.0, 1.0)),
)


@dataclass(frozen=True)
class Case:
    """One call: sizes, masks and the scale of its inputs."""

    feature_map: str
    causal: bool
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    num_features: int
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    omega_per_head: bool = False
    has_omega: bool = True
    masked: bool = False
    cu_seqlens: tuple[int, ...] | None = None
    q_scale: float = 1.0
    k_scale: float = 1.0
    ramp: tuple[float, float] = (1.0, 1.0)
    kernel_epsilon: float | None = None
    nonfinite: str = ""

    def inputs(self, seed: int) -> dict[str, Array]:
        """q, k, v, grad and omega."""
        queries, keys = (self.batch, self.heads, self.q_len), (self.batch, self.kv_heads, self.kv_len)
        matrices = (self.heads,) if self.omega_per_head else ()
        shapes = (
            (*queries, self.head_dim),
            (*keys, self.head_dim),
            (*keys, self.value_dim),
            (*queries, self.value_dim),
            (*matrices, self.num_features, self.head_dim),
        )
        arrays = dict(zip(("q", "k", "v", "grad", "omega"), map(np.copy, _drawn(seed, shapes)), strict=True))
        first, last = self.ramp
        arrays["q"] *= self.q_scale
        arrays["k"] *= self.k_scale
        arrays["k"] *= (first + np.arange(self.kv_len) * ((last - first) / max(self.kv_len - 1, 1)))[:, None]
        if self.nonfinite:
            arrays[self.nonfinite][0, 0, arrays[self.nonfinite].shape[2] // 2, 0] = np.nan
        return arrays

    def padding(self) -> NDArray[np.bool_] | None:
        """The key padding mask: a few keys of each entry, never the first of the first."""
        if not self.masked:
            return None
        at = np.arange(self.batch * self.kv_len)
        return ((at * 7 + at // max(self.kv_len, 1)) % 10 > 6).reshape(self.batch, self.kv_len)


def near_normal(rng: np.random.Generator, *shape: int) -> Array:
    """Sums of twelve uniform numbers, less six: nearly N(0,1), without a function that libraries round differently."""
    total = np.full(shape, -6.0)
    for _ in range(12):
        total += rng.random(shape)
    return total


@functools.cache
def _drawn(seed: int, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    # Maps have most of their shapes in common.
    rng = np.random.Generator(np.random.Philox(seed))
    return [near_normal(rng, *shape) for shape in shapes]


def input_scale(feature_map: str) -> float:
    """The scale of ordinary queries and keys."""
    return 0.5 if feature_map in _WAVES else 1.0


def groups() -> Iterator[tuple[str, list[Case]]]:
    """Named groups of cases; a group is one line of the record."""
    for feature_map in (*MAPS, *FURTHER_MAPS):
        for causal in (False, True):
            name = f"{feature_map} {'causal' if causal else 'noncausal'}"
            scale = input_scale(feature_map)
            base = Case(feature_map, causal, 0, 0, 1, 1, 1, q_scale=scale, k_scale=scale)
            shapes = SHAPES if feature_map in MAPS else SHAPES[1::4]
            yield f"{name} shapes", [case for shape in shapes for case in _variants(base, shape)]
            if feature_map in MAPS:
                yield f"{name} blocks", list(_blocks(base))
            yield f"{name} extremes", list(_extremes(base))


def _variants(base: Case, shape: tuple[int, int, int, int]) -> Iterator[Case]:
    """With padding, with segments and grouped queries, with an omega for each head, without omega, and plain."""
    length, head_dim, value_dim, num_features = shape
    sizes = {"head_dim": head_dim, "value_dim": value_dim, "num_features": num_features}
    case = replace(base, q_len=length, kv_len=length, **sizes)
    third = length // 3
    borders = (0, 0, third, third + int(length > 2), length)
    yield case
    yield replace(case, masked=True, batch=2)
    yield replace(case, cu_seqlens=borders, heads=2)
    kv_len = length if base.causal else length // 2 + 3
    yield replace(case, heads=4, kv_heads=2, omega_per_head=True, kv_len=kv_len)
    if base.feature_map in _ACTIVATIONS:
        yield replace(case, has_omega=False, kernel_epsilon=0.5)


def _blocks(base: Case) -> Iterator[Case]:
    """Long sequences of few heads, which are cut into blocks that threads share."""
    sizes = {"head_dim": 5, "value_dim": 3, "num_features": 70}
    if base.causal:
        yield replace(base, q_len=3000, kv_len=3000, masked=True, **sizes)
        yield replace(base, q_len=2200, kv_len=2200, cu_seqlens=(0, 2100, 2200), heads=2, **sizes)
    else:
        yield replace(base, q_len=1030, kv_len=2500, masked=True, heads=2, **sizes)
        yield replace(base, q_len=2500, kv_len=1100, **sizes)


def _extremes(base: Case) -> Iterator[Case]:
    for q_scale, k_scale, ramp in EXTREMES:
        if base.feature_map in _WAVES and max(q_scale, k_scale) > 60:
            continue
        yield replace(
            base,
            q_len=130,
            kv_len=130,
            head_dim=32,
            value_dim=20,
            num_features=90,
            q_scale=q_scale,
            k_scale=k_scale,
            ramp=ramp,
        )
    for name in ("q", "k", "v", "grad"):
        yield replace(base, q_len=130, kv_len=130, head_dim=12, value_dim=9, num_features=20, nonfinite=name)
