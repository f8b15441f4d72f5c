"""What the tests of traps share: the estimate written out in float64, and the recipe with a maximum and an epsilon."""

import torch

import protperf

D, M, L = 64, 256, 128


def normal(scale=1.0, *, batch=1, heads=1, length=L, width=D, seed=0, dtype=torch.float32):
    """q and k of normal numbers times `scale`, and v of normal numbers."""
    gen = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, heads, length, width, generator=gen, dtype=torch.float64)
    return (scale * q).to(dtype), (scale * k).to(dtype), v.to(dtype)


def directions(num_features=M, width=D, **options):
    return torch.from_numpy(protperf.draw_projection(num_features, width, **options))


def log_features(q, k, omega):
    """Logarithms of positive features [.., M] of queries and keys, in float64."""
    x, y = (t.double() * t.shape[-1] ** -0.25 for t in (q, k))
    return x @ omega.T - x.square().sum(-1, keepdim=True) / 2, y @ omega.T - y.square().sum(-1, keepdim=True) / 2


def estimate(q, k, v, omega, causal=False):
    """The estimate itself: weights are sums over features of exp(a + b), taken by their logarithms."""
    a, b = log_features(q, k, omega)
    logits = torch.logsumexp(a[..., :, None, :] + b[..., None, :, :], -1)
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return logits.softmax(-1) @ v.double()


def with_epsilon(q, k, v, omega, epsilon=1e-4, guard=0.0, causal=False):
    """The recipe that others have: products less the maximum over all keys, and a constant added to every feature."""
    x, y = (t.double() * t.shape[-1] ** -0.25 for t in (q, k))
    a, b = x @ omega.T, y @ omega.T
    a = (a - a.amax(-1, keepdim=True) - x.square().sum(-1, keepdim=True) / 2).exp() + epsilon
    b = (b - b.amax() - y.square().sum(-1, keepdim=True) / 2).exp() + epsilon
    weights = a @ b.mT / len(omega)
    weights = weights.tril() if causal else weights
    return weights @ v.double() / (weights.sum(-1, keepdim=True) + guard)


def distance(a, b):
    """Relative distance of a from b."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())
