"""What ours is compared with: exact attention, the same estimator in plain torch, and another package.

Shapes: q, k, v [B,H,L,D], omega [M,D]. Written for this bench and from the formulas, not from our kernels.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable

import torch
from torch.nn import functional

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

CHUNK = 128
NUM_SAMPLED_ROWS = 8
EXACT = ("SDPA", "SDPA bf16")
LINEAR = ("linear", "linear bf16", "linear compiled")
COMPILED = ("linear compiled",)
OTHER = "performer-pytorch"
NAMES = (*EXACT, *LINEAR, OTHER)
"""torch's own exact attention; FAVOR+ in plain torch; a package that estimates something else, as its error shows."""


def is_installed(name: str) -> bool:
    """Whether what a method needs can be imported."""
    return name != OTHER or importlib.util.find_spec("performer_pytorch") is not None


def method(name: str, omega: torch.Tensor, *, causal: bool) -> tuple[Attention, torch.dtype]:
    """Attention of q, k and v by name, and the type of its tensors."""
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    if name in EXACT:
        return lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=causal), dtype
    if name == OTHER:
        return _performer_pytorch(omega, causal=causal), dtype
    typed = omega.to(dtype)
    attention = torch.compile(chunked_linear) if name in COMPILED else chunked_linear
    return lambda q, k, v: attention(q, k, v, typed, causal=causal), dtype


def _performer_pytorch(omega: torch.Tensor, *, causal: bool) -> Attention:
    from performer_pytorch import FastAttention

    features, width = omega.shape
    # It says on standard output that it has no CUDA.
    with contextlib.redirect_stdout(sys.stderr):
        attention = FastAttention(dim_heads=width, nb_features=features, causal=causal)
    attention.projection_matrix.copy_(omega)
    return attention


def chunked_linear(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, omega: torch.Tensor, *, causal: bool
) -> torch.Tensor:
    """FAVOR+ with positive features as a careful torch user would write it: GEMMs, in chunks for the causal form.

    The stabilizer is the largest log-feature of all keys and of each query; in the causal form it looks ahead.
    """
    scale = q.shape[-1] ** -0.25
    keys = k * scale
    log_q = (q * scale) @ omega.T
    log_k = keys @ omega.T - keys.square().sum(-1, keepdim=True) / 2
    phi_q = torch.exp(log_q - log_q.amax(-1, keepdim=True).detach())  # [B,H,L,M]
    phi_k = torch.exp(log_k - log_k.amax((-1, -2), keepdim=True).detach())
    values = torch.cat([v, torch.ones_like(v[..., :1])], -1)  # [B,H,L,D+1]
    sums = _causal(phi_q, phi_k, values) if causal else phi_q @ (phi_k.mT @ values)
    return sums[..., :-1] / sums[..., -1:]


def _causal(phi_q: torch.Tensor, phi_k: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    if phi_q.shape[2] % CHUNK:
        raise ValueError(f"L is {phi_q.shape[2]}, which is not a multiple of {CHUNK}")
    queries, keys, chunks = (x.unflatten(2, (-1, CHUNK)) for x in (phi_q, phi_k, values))  # [B,H,N,C,.]
    states = keys.mT @ chunks
    before = states.cumsum(2) - states
    within = (queries @ keys.mT).tril() @ chunks
    return (within + queries @ before).flatten(2, 3)


def estimate_f64(omega: torch.Tensor, *, causal: bool) -> Attention:
    """The same estimator in f64: at q, k ~ N(0,1) its range needs no stabilizer beyond a constant."""
    return lambda q, k, v: chunked_linear(q, k, v, omega.double(), causal=causal)


def sampled_rows(q: torch.Tensor) -> torch.Tensor:
    """Positions from the first to the last, evenly spaced."""
    return torch.linspace(0, q.shape[2] - 1, NUM_SAMPLED_ROWS).long()


def softmax_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Exact attention of the sampled rows, [B,H,8,D]."""
    rows = sampled_rows(q)
    logits = q[:, :, rows] @ k.mT * q.shape[-1] ** -0.5
    if causal:
        logits = logits.masked_fill(torch.arange(k.shape[2]) > rows[:, None], -torch.inf)
    return logits.softmax(-1) @ v
