"""Attention written out over every pair of positions and every feature: the oracle of tests and of `protperf doctor`.

Memory O(L S F). It shares no formula with the native kernels nor with the chunked form: no state, no chunk and no power
of two, but logarithms and torch's own `logsumexp`. Differentiable any number of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from protperf.torch.visibility import visible

__all__ = ["favor_attention", "log_weights", "softmax_attention"]

EXPONENTIAL = {"positive": 1.0, "hyperbolic": 1.0, "smreg": 1.0, "gaussian": 2.0, "exp": 0.0}
"""Exponential maps, and how often a key's |y|^2/2 is subtracted."""
ACTIVATION: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    "relu": (torch.relu, 1e-3),
    "elu1": (lambda x: torch.nn.functional.elu(x) + 1, 0.0),
    "identity": (lambda x: x, 0.0),
    "abs": (torch.abs, 0.0),
    "relu2": (lambda x: torch.relu(x) ** 2, 0.0),
    "square": (lambda x: x**2, 0.0),
    "sigmoid": (torch.sigmoid, 0.0),
    "tanh": (torch.tanh, 0.0),
    "gelu": (lambda x: torch.nn.functional.gelu(x, approximate="tanh"), 0.0),
    "cos": (torch.cos, 0.0),
}
"""Each activation map and its own `kernel_epsilon`."""


def directions(feature_map: str, omega: torch.Tensor) -> torch.Tensor:
    """The directions a map makes of omega [..,M,D]."""
    if feature_map == "hyperbolic":
        return torch.cat([omega, -omega], -2)
    if feature_map == "smreg":
        return omega * (math.sqrt(omega.shape[-1]) / torch.linalg.vector_norm(omega, dim=-1, keepdim=True))
    if feature_map not in ("positive", "gaussian", "exp"):
        raise NotImplementedError(f"the directions of feature_map {feature_map!r} are not written here yet")
    return omega


def log_weights(
    q: torch.Tensor, k: torch.Tensor, omega: torch.Tensor, feature_map: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logs of the features of an exponential map, a query's own constant dropped: [B,H,L,F] and [B,H,S,F]."""
    w = directions(feature_map, omega.to(q.dtype))
    x, y = q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25
    return x @ w.mT, y @ w.mT - 0.5 * EXPONENTIAL[feature_map] * (y * y).sum(-1, keepdim=True)


def favor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | None,
    *,
    feature_map: str = "positive",
    causal: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
    kernel_epsilon: float | None = None,
) -> torch.Tensor:
    """The estimator of `protperf.favor_attention` over explicit pairs and features.

    Shapes as there. Source: Choromanski et al. 2021, arXiv:2009.14794.
    """
    q, k, v, seen, poisoned = _prepare(q, k, v, causal, cu_seqlens, key_padding_mask)
    if omega is not None:
        finite = omega.isfinite()
        poisoned = poisoned | ~finite.all(-1).all(-1)[..., None, None]
        omega = omega.masked_fill(~finite, 0.0)
    if feature_map in EXPONENTIAL:
        assert omega is not None
        a, b = log_weights(q, k, omega, feature_map)
        scores = _exp(torch.logsumexp(a[:, :, :, None, :] + b[:, :, None, :, :], -1), seen)
    elif feature_map in ("trigonometric", "fourier"):
        assert omega is not None
        scores = _trigonometric_scores(q, k, omega, seen, 1.0 if feature_map == "trigonometric" else 0.0)
    else:
        scores = _activation_scores(q, k, omega, feature_map, kernel_epsilon).masked_fill(~seen, 0.0)
    return _mean(scores, v, poisoned)


def _prepare(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    cu_seqlens: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shared keys repeated, rows that are not finite set to 0 (0 * NaN would reach rows that do not see them), who
    sees whom [B,H,L,S], and the outputs [B,H,L,1] that see a row that is not finite.
    """
    group = q.shape[1] // max(k.shape[1], 1)
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    seen = visible(q.shape[2], k.shape[2], causal, cu_seqlens, key_padding_mask, q.device)
    bad_query = ~q.isfinite().all(-1, keepdim=True)
    bad_key = ~(k.isfinite().all(-1, keepdim=True) & v.isfinite().all(-1, keepdim=True))
    poisoned = (bad_query & seen.any(-1, keepdim=True)) | (seen & bad_key.mT).any(-1, keepdim=True)
    q = q.masked_fill(bad_query, 0.0)
    return q, k.masked_fill(bad_key, 0.0), v.masked_fill(bad_key, 0.0), seen, poisoned


def _exp(logits: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Exp of what is seen, less the greatest of its row; 0 elsewhere."""
    if logits.shape[-1] == 0:
        return logits
    logits = logits.masked_fill(~seen, -torch.inf)
    top = logits.amax(-1, keepdim=True).clamp_min(torch.finfo(logits.dtype).min).detach()
    return torch.exp(logits - top)


def _mean(scores: torch.Tensor, v: torch.Tensor, poisoned: torch.Tensor) -> torch.Tensor:
    """The mean of v weighted by scores; 0 where the weights are 0, NaN where a row that is not finite was seen."""
    total = scores.sum(-1, keepdim=True)
    empty = total == 0
    out = torch.where(empty, 0.0, (scores @ v) / torch.where(empty, 1.0, total))
    return out.masked_fill(poisoned, torch.nan)


def _trigonometric_scores(
    q: torch.Tensor, k: torch.Tensor, omega: torch.Tensor, seen: torch.Tensor, weight: float
) -> torch.Tensor:
    """cos(w.(x - y)) exp(weight |y|^2/2) summed over w, less the largest exponent that a row sees."""
    w = omega.to(q.dtype)
    x, y = q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25
    u, z = x @ w.mT, y @ w.mT
    half_norm = 0.5 * weight * (y * y).sum(-1)[:, :, None, :].expand(-1, -1, q.shape[2], -1)
    return (torch.cos(u) @ torch.cos(z).mT + torch.sin(u) @ torch.sin(z).mT) * _exp(half_norm, seen)


def _activation_scores(
    q: torch.Tensor, k: torch.Tensor, omega: torch.Tensor | None, feature_map: str, kernel_epsilon: float | None
) -> torch.Tensor:
    x, y = q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25
    if omega is not None:
        w = omega.to(q.dtype)
        x, y = x @ w.mT, y @ w.mT
    activation, default_epsilon = ACTIVATION[feature_map]
    epsilon = default_epsilon if kernel_epsilon is None else kernel_epsilon
    return (activation(x) + epsilon) @ (activation(y) + epsilon).mT


def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    key_padding_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Exact attention over explicit pairs; a row that sees no key gives 0."""
    q, k, v, seen, poisoned = _prepare(q, k, v, causal, cu_seqlens, key_padding_mask)
    return _mean(_exp(q @ k.mT / math.sqrt(q.shape[-1]), seen), v, poisoned)
