"""The attentions that experiments compare, by name, all called as `protperf.torch.nn.FavorAttention` is.

`exact`, every map of protperf, and three that are written here in plain torch: `none` returns the values, and is what
the rest of a network costs; `linformer` and `reformer` do what these methods do, in a few lines and without their
tuning, so they say what the method is worth and not how fast its authors' code is.
"""

import math

import torch
from torch.nn.functional import normalize, pad, scaled_dot_product_attention

from protperf.torch.nn import attention_core

NONE, LINFORMER, REFORMER = "none", "linformer", "reformer"


def attention(name, head_dim, num_heads, *, max_length, num_features=64, causal=False, layer=0, seed=0, **options):
    """A module: forward(q, k, v, *, key_padding_mask=None) of [B,H,L,D] returns [B,H,L,D]."""
    if name == NONE:
        return NoAttention()
    if name == LINFORMER:
        return CausalLinformer() if causal else Linformer(max_length)
    if name == REFORMER:
        return Reformer(causal=causal, seed=1000 * seed + layer)
    core = attention_core(
        head_dim, num_heads, feature_map=name, num_features=num_features, layer=layer, seed=seed, **options
    )
    return Called(core, causal)


class Called(torch.nn.Module):
    """A core of protperf that is always called as causal, or never; one with fitted constants observes in training."""

    def __init__(self, core, causal):
        super().__init__()
        self.core, self.causal = core, causal

    def forward(self, q, k, v, *, key_padding_mask=None):
        if self.training and hasattr(self.core, "observe"):
            self.core.observe(q, k, key_padding_mask=key_padding_mask)
        return self.core(q, k, v, causal=self.causal, key_padding_mask=key_padding_mask)


class NoAttention(torch.nn.Module):
    """The "X" line of the article: the output is the value."""

    def forward(self, q, k, v, *, key_padding_mask=None):
        return v


class Linformer(torch.nn.Module):
    """Softmax over learned mixtures of the keys, as many for any length; heads, keys and values share the mixing.

    Source: Wang et al. 2020, arXiv:2006.04768.
    """

    def __init__(self, max_length, num_mixtures=32):
        super().__init__()
        self.mixing = torch.nn.Parameter(torch.randn(num_mixtures, max_length) / math.sqrt(max_length))

    def forward(self, q, k, v, *, key_padding_mask=None):
        if key_padding_mask is not None:
            k, v = (x.masked_fill(key_padding_mask[:, None, :, None], 0.0) for x in (k, v))
        mixing = self.mixing[:, : k.shape[2]]
        return scaled_dot_product_attention(q, mixing @ k, mixing @ v)


class CausalLinformer(torch.nn.Module):
    """Softmax over the keys of the own block up to the query, and over learned mixtures of every block before it.

    Linformer itself has no causal form: a mixture of all keys holds later ones.
    """

    def __init__(self, block=32, num_mixtures=4):
        super().__init__()
        self.block = block
        self.mixing = torch.nn.Parameter(torch.randn(num_mixtures, block) / math.sqrt(block))

    def forward(self, q, k, v, *, key_padding_mask=None):
        length = q.shape[2]
        q, k, v = (pad(x, (0, 0, 0, -length % self.block)) for x in (q, k, v))
        mixed_k, mixed_v = ((self.mixing @ x.unflatten(2, (-1, self.block))).flatten(2, 3) for x in (k, v))
        at = torch.arange(q.shape[2], device=q.device)
        own = (at[:, None] >= at) & (at[:, None] // self.block == at // self.block)
        of_block = torch.arange(mixed_k.shape[2], device=q.device) // self.mixing.shape[0]
        seen = torch.cat([of_block < at[:, None] // self.block, own], 1)
        out = scaled_dot_product_attention(q, torch.cat([mixed_k, k], 2), torch.cat([mixed_v, v], 2), attn_mask=seen)
        return out[:, :, :length]


class Reformer(torch.nn.Module):
    """Softmax over keys in the same bucket of a hash: rows are sorted by bucket, cut into chunks, and each chunk sees
    itself and the chunk before.

    Queries are the keys too (`k` is not read), of unit norm as keys; a row sees itself only where it sees nothing else.
    Hashes are drawn anew in training and fixed in evaluation.

    Source: Kitaev et al. 2020, arXiv:2001.04451.
    """

    shares_query_and_key = True

    def __init__(self, causal, *, chunk=32, num_hashes=2, seed=0):
        super().__init__()
        self.causal, self.chunk, self.num_hashes, self.seed = causal, chunk, num_hashes, seed
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, q, k, v, *, key_padding_mask=None):
        length = q.shape[2]
        short = -length % self.chunk
        missing = torch.zeros(q.shape[0], length, dtype=torch.bool) if key_padding_mask is None else key_padding_mask
        missing = pad(missing, (0, short), value=True)
        q, v = (pad(x, (0, 0, 0, short)) for x in (q, v))
        generator = self.generator if self.training else torch.Generator().manual_seed(self.seed)
        rounds = [self._round(q, v, missing, generator) for _ in range(self.num_hashes)]
        outs, logs = (torch.stack(x) for x in zip(*rounds, strict=True))
        return (outs * logs.softmax(0)[..., None]).sum(0)[:, :, :length]

    def _round(self, q, v, missing, generator):
        """Output [B,H,L,D] and logarithm of the sum of weights [B,H,L] of one hash."""
        order = self._order(q, missing, generator)
        sort = torch.argsort(order, -1)
        rows, values = (torch.gather(x, 2, order[..., None].expand_as(x)) for x in (q, v))
        rows, values, at = (x.unflatten(2, (-1, self.chunk)) for x in (rows, values, order))
        gone = torch.gather(missing[:, None].expand_as(order), 2, order).unflatten(2, (-1, self.chunk))
        keys, values, key_at, gone = (_with_previous(x) for x in (normalize(rows, dim=-1), values, at, gone))
        scores = rows @ keys.mT * rows.shape[-1] ** -0.5
        at, key_at = at[..., None], key_at[..., None, :]
        hidden = gone[..., None, :] | (at < key_at) if self.causal else gone[..., None, :].expand_as(scores)
        scores = scores.masked_fill(hidden, -1e9).masked_fill(at == key_at, -1e5)
        log_sum = scores.logsumexp(-1).flatten(2)
        out = (scores.softmax(-1) @ values).flatten(2, 3)
        return torch.gather(out, 2, sort[..., None].expand_as(out)), torch.gather(log_sum, 2, sort)

    def _order(self, q, missing, generator):
        """Positions [B,H,L] by bucket and, inside of one, by position; missing ones last."""
        length = q.shape[2]
        num_buckets = max(2, 2 * (length // self.chunk // 2))
        rotation = torch.randn(q.shape[-1], num_buckets // 2, generator=generator)
        turned = q.detach() @ rotation
        bucket = torch.cat([turned, -turned], -1).argmax(-1).masked_fill(missing[:, None], num_buckets)
        return torch.argsort(bucket * length + torch.arange(length), -1)


def _with_previous(x):
    """Each chunk of [B,H,N,C,..] and the one before it, [B,H,N,2C,..]; before the first comes the last."""
    return torch.cat([x.roll(1, 2), x], 3)
