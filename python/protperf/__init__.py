"""protperf: linear-attention Performers (FAVOR+), exact and fast.

NumPy in and out here; torch operators and modules in `protperf.torch`; the protein language model in `protperf.lm`.
Importing this package imports neither NumPy nor torch.
"""

from __future__ import annotations

from protperf import errors
from protperf._backends import backends
from protperf._native import __version__
from protperf.errors import Error
from protperf.functional import (
    LogLinear,
    build_info,
    draw_projection,
    favor_attention,
    feature_maps,
    norms,
    samplers,
    softmax_attention,
)

__all__ = [
    "Error",
    "LogLinear",
    "__version__",
    "backends",
    "build_info",
    "draw_projection",
    "errors",
    "favor_attention",
    "feature_maps",
    "norms",
    "samplers",
    "softmax_attention",
]
