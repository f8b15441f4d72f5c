"""A small Transformer with rotary positions whose attention is given by name."""

import torch
from attentions import attention

from protperf.torch.nn import QKNorm, Rotary


class Block(torch.nn.Module):
    """Attention and two linear layers, each after a norm and added to the residual stream [B,L,C]."""

    def __init__(self, model_dim, num_heads, ff_dim, core, *, temperature=None):
        super().__init__()
        self.num_heads = num_heads
        head_dim = model_dim // num_heads
        self.num_projections = 2 if getattr(core, "shares_query_and_key", False) else 3
        self.before_attention, self.before_ff = (torch.nn.LayerNorm(model_dim) for _ in range(2))
        self.projections = torch.nn.Linear(model_dim, self.num_projections * model_dim, bias=False)
        self.rotary = Rotary(head_dim)
        self.norm = None if temperature is None else QKNorm(head_dim, num_heads, temperature=temperature)
        self.core = core
        self.out = torch.nn.Linear(model_dim, model_dim, bias=False)
        self.ff = torch.nn.Sequential(
            torch.nn.Linear(model_dim, ff_dim), torch.nn.GELU(), torch.nn.Linear(ff_dim, model_dim)
        )

    def heads(self, x):
        """Queries, keys and values [B,H,L,D] as attention gets them."""
        parts = self.projections(self.before_attention(x)).chunk(self.num_projections, -1)
        q, k, v = (p.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in (parts[0], parts[-2], parts[-1]))
        if self.norm is not None:
            q, k = self.norm(q, k)
        return *self.rotary(q, k), v

    def forward(self, x, padding=None):
        out = self.core(*self.heads(x), key_padding_mask=padding)
        x = x + self.out(out.transpose(1, 2).flatten(2))
        return x + self.ff(self.before_ff(x))


class SmallModel(torch.nn.Module):
    """Tokens [B,L] to logits [B,L,V].

    Args:
        name: of the attention, see `attentions.attention`; `options` go there.
        ff_dim: default 4 C.
        temperature: where that of normalised queries and keys starts; None does not normalise them.
        axes: sizes of the axes that a position stands for (of an image: rows, columns, channels), each of which gets
            an embedding.
    """

    def __init__(
        self,
        name,
        *,
        vocab_size,
        model_dim=64,
        num_heads=4,
        num_layers=2,
        ff_dim=None,
        temperature=None,
        axes=(),
        seed=0,
        **options,
    ):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(vocab_size, model_dim)
        self.axes = torch.nn.ParameterList(torch.nn.Parameter(0.02 * torch.randn(n, model_dim)) for n in axes)
        head_dim = model_dim // num_heads
        cores = [attention(name, head_dim, num_heads, layer=at, seed=seed, **options) for at in range(num_layers)]
        self.blocks = torch.nn.ModuleList(
            Block(model_dim, num_heads, ff_dim or 4 * model_dim, core, temperature=temperature) for core in cores
        )
        self.final_norm = torch.nn.LayerNorm(model_dim)
        self.logits = torch.nn.Linear(model_dim, vocab_size)
        torch.nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens, padding=None):
        x = self.embedding(tokens)
        if len(self.axes):
            places = torch.cartesian_prod(*(torch.arange(len(axis)) for axis in self.axes))[: tokens.shape[1]]
            x = x + sum(axis[place] for axis, place in zip(self.axes, places.T, strict=True))
        for block in self.blocks:
            x = block(x, padding)
        return self.logits(self.final_norm(x))

    def redraw(self, draw):
        """New directions in every layer that has some."""
        for module in self.modules():
            if module is not self and hasattr(module, "redraw"):
                module.redraw(draw)

    def num_parameters(self):
        return sum(p.numel() for p in self.parameters())
