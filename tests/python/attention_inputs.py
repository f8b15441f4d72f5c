"""Seeded inputs of attention, and the comparisons that the tests of this folder share."""

import numpy as np
import torch

import protperf

torch.set_num_threads(1)

MAPS = ("positive", "hyperbolic", "smreg", "relu", "elu1", "trigonometric")
"""Maps of every family, for tests that are the same for all; `test_feature_maps.py` has those that are not here."""
EXPONENTIAL = ("positive", "hyperbolic", "smreg")
ACTIVATION = ("relu", "elu1")


def arrays(b=1, h=2, q_len=33, kv_len=None, d=8, e=8, m=16, *, kv_heads=None, scale=1.0, seed=0, dtype=np.float64):
    """q, k, v and omega as NumPy arrays; normal numbers times `scale`, v unscaled."""
    rng = np.random.default_rng(seed)
    kv_len, kv_heads = q_len if kv_len is None else kv_len, h if kv_heads is None else kv_heads
    q = scale * rng.standard_normal((b, h, q_len, d))
    k = scale * rng.standard_normal((b, kv_heads, kv_len, d))
    v = rng.standard_normal((b, kv_heads, kv_len, e))
    omega = protperf.draw_projection(m, d, seed=seed)
    return q.astype(dtype), k.astype(dtype), v.astype(dtype), omega


def tensors(*args, dtype=torch.float64, requires_grad=False, **options):
    """As `arrays`, as torch tensors; q, k and v in `dtype`, omega in float64 unless `dtype` is a leaf's."""
    q, k, v, omega = (torch.from_numpy(x) for x in arrays(*args, **options))
    q, k, v = (x.to(dtype).requires_grad_(requires_grad) for x in (q, k, v))
    return q, k, v, omega


def same_bits(a, b):
    """Equal shapes and equal bits, NaN like any other pattern of its kind."""
    a, b = (x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in (a, b))
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True)


def worst(a, b):
    """Largest absolute difference; 0 for empty arrays."""
    a, b = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, np.float64) for x in (a, b))
    assert a.shape == b.shape
    return float(np.abs(a - b).max(initial=0.0))
