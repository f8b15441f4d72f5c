"""What data loader workers and pools compute; importable, so that spawned processes find it."""

import numpy as np
import torch

import protperf
from protperf.torch import favor_attention


def compute(index):
    """Output of an attention call, large enough for the pool, and its gradients; seeded by `index`."""
    rng = np.random.default_rng(index)
    q, k, v = (torch.from_numpy(rng.standard_normal((1, 4, 400, 64), np.float32)).requires_grad_() for _ in range(3))
    out = favor_attention(q, k, v, torch.from_numpy(protperf.draw_projection(64, 64)))
    grads = torch.autograd.grad(out, [q, k, v], torch.ones_like(out))
    return np.concatenate([x.detach().numpy().ravel() for x in (out, *grads)])


class Computed(torch.utils.data.Dataset):
    """Items are `compute` of their index."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.from_numpy(compute(index))
