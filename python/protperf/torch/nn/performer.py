"""Whole networks of linear attention: layers of it, and a language model made of them.

Layers are pre-norm: each part reads the norm of its input and adds to it. Continuing a sequence costs the same at every
position, for what later queries see of the keys so far is a state that does not grow.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch.nn import functional

from protperf._arguments import check_flag, check_positive
from protperf.errors import ConfigError, ShapeError
from protperf.torch.nn.core import attention_core
from protperf.torch.nn.positions import Rotary

__all__ = ["Performer", "PerformerLM", "PerformerState"]


class PerformerState(NamedTuple):
    """What later positions see of a sequence so far.

    `length` positions went before; `layers` has a state of the attention of each layer, as its `with_state` returns it,
    and `contexts` of the attention to a context, where there is one.
    """

    length: int
    layers: tuple[Any, ...]
    contexts: tuple[Any, ...]


class Performer(torch.nn.Module):
    """Layers of linear attention, a feed-forward network after each.

    Args:
        embed_dim: C, the width of rows.
        num_layers, num_heads: how many.
        head_dim: D; None takes C / num_heads.
        dim_feedforward: width inside of the feed-forward networks; None takes 4 C.
        gated: half of that width gates another half (GEGLU).
        cross_attention: each layer is followed by one that attends to a context, with a feed-forward network too.
        rotary: queries and keys are rotated by their positions, in sequences of any length. Exact attention then
            depends on distances alone, and estimates of it up to their error. Without it positions count only as far
            as the rows themselves hold them.
        bias: of the projections to queries, keys and values.
        dropout: of what each part adds.
        attention: the arguments of `attention_core`, such as `causal`, `feature_map`, `num_features` and
            `num_window_heads`.

    Shapes: x [B,L,C], context [B,S,C]; returns [B,L,C].

    Raises:
        DtypeError, ConfigError: an argument of the wrong kind or out of range.
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        dim_feedforward: int | None = None,
        gated: bool = False,
        cross_attention: bool = False,
        rotary: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.embed_dim = check_positive("embed_dim", embed_dim)
        num_layers, num_heads = check_positive("num_layers", num_layers), check_positive("num_heads", num_heads)
        if head_dim is None and self.embed_dim % num_heads:
            raise ConfigError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}; give head_dim")
        head_dim = self.embed_dim // num_heads if head_dim is None else check_positive("head_dim", head_dim)
        inner = 4 * self.embed_dim if dim_feedforward is None else check_positive("dim_feedforward", dim_feedforward)
        shape: dict[str, Any] = {"num_heads": num_heads, "head_dim": head_dim, "bias": bias, "dropout": dropout}
        # A context has no order that it shares with x.
        crossing = {name: x for name, x in attention.items() if name not in ("causal", "num_window_heads", "window")}

        def layers(rotary: bool, first: int, **attention: Any) -> torch.nn.ModuleList:
            return torch.nn.ModuleList(
                Layer(
                    LayerAttention(self.embed_dim, rotary=rotary, layer=first + i, **shape, **attention),
                    FeedForward(self.embed_dim, inner, gated, dropout),
                )
                for i in range(num_layers)
            )

        self.layers = layers(rotary, 0, **attention)
        self.crossing = layers(False, num_layers, **crossing) if cross_attention else torch.nn.ModuleList()
        # What a layer adds to the sum of all begins small, so that the sum stays of unit size however many there are.
        with torch.no_grad():
            for modules in (self.layers, self.crossing):
                for i in range(len(modules)):
                    layer = layer_of(modules, i)
                    for last in (layer.attention.out_proj, layer.feed_forward.narrow):
                        last.weight.mul_((2 * (num_layers + len(self.crossing))) ** -0.5)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None = None,
        *,
        key_padding_mask: torch.Tensor | None = None,
        context_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Rows [B,L,C]; masks are bool, [B,L] and [B,S], with True where a row is padding and no key.

        Raises:
            ConfigError: a context without `cross_attention`, or none with it.
        """
        self._check(x, context is not None)
        for i, layer in enumerate(self.layers):
            x = layer(x, None, key_padding_mask)
            if self.crossing:
                x = self.crossing[i](x, context, context_padding_mask)
        return x

    def with_state(
        self,
        x: torch.Tensor,
        state: PerformerState | None = None,
        *,
        context: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
        context_padding_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, PerformerState]:
        """Rows after those of the state, read left to right, and the state after them.

        A context is given with the first rows; later ones find it in the state.

        Raises:
            ConfigError: attention that keeps no state (`exact`), or that is not causal.
        """
        self._check(x, context is not None or (state is not None and bool(state.contexts)))
        length = 0 if state is None else state.length
        after, contexts = [], []
        for i in range(len(self.layers)):
            before = None if state is None else state.layers[i]
            x, kept = layer_of(self.layers, i).with_state(x, before, length, key_padding_mask)
            after.append(kept)
            if self.crossing:
                seen = None if state is None else state.contexts[i]
                x, kept = layer_of(self.crossing, i).with_context(x, context, seen, context_padding_mask)
                contexts.append(kept)
        return x, PerformerState(length + x.shape[1], tuple(after), tuple(contexts))

    def _check(self, x: torch.Tensor, has_context: bool) -> None:
        if x.dim() != 3 or x.shape[2] != self.embed_dim:
            raise ShapeError(f"x is {list(x.shape)}; it must be [B,L,{self.embed_dim}]")
        if has_context and not self.crossing:
            raise ConfigError("a context was given, but there is nothing that attends to it; say cross_attention=True")
        if self.crossing and not has_context:
            raise ConfigError("no context was given, but every other layer attends to one")


class PerformerLM(torch.nn.Module):
    """A language model over any tokens: embeddings, a `Performer`, and logits by the same embeddings.

    For proteins `protperf train` makes one with more care; this is for other tokens, and for networks of your own.

    Args:
        num_tokens: size of the vocabulary.
        embed_dim, num_layers, num_heads: as in `Performer`.
        max_length: adds a learned vector for each of so many positions; None leaves them to rotations, at any length.
        rotary: as in `Performer`; None rotates where there is no `max_length`.
        tied: logits are products with the embeddings; otherwise they have a matrix and a bias of their own.
        dropout: of embeddings, and as in `Performer`.
        layers: more arguments of `Performer`, such as `causal` and `num_features`.

    Shapes: tokens [B,L], integers; context [B,S,C]; returns logits [B,L,num_tokens].
    """

    def __init__(
        self,
        num_tokens: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        max_length: int | None = None,
        rotary: bool | None = None,
        tied: bool = True,
        dropout: float = 0.0,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.num_tokens = check_positive("num_tokens", num_tokens)
        self.max_length = None if max_length is None else check_positive("max_length", max_length)
        rotary = max_length is None if rotary is None else check_flag("rotary", rotary)
        self.performer = Performer(embed_dim, num_layers, num_heads, rotary=rotary, dropout=dropout, **layers)
        self.embedding = torch.nn.Embedding(num_tokens, embed_dim)
        self.positions = None if max_length is None else torch.nn.Embedding(max_length, embed_dim)
        self.dropout = torch.nn.Dropout(dropout)
        self.norm = torch.nn.LayerNorm(embed_dim)
        self.head = None if tied else torch.nn.Linear(embed_dim, num_tokens)
        for table in (self.embedding, self.positions):
            if table is not None:
                torch.nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: torch.Tensor, context: torch.Tensor | None = None, **masks: Any) -> torch.Tensor:
        """Logits [B,L,num_tokens]; masks as in `Performer.forward`."""
        return self._logits(self.hidden(tokens, context, **masks))

    def hidden(self, tokens: torch.Tensor, context: torch.Tensor | None = None, **masks: Any) -> torch.Tensor:
        """The rows [B,L,C] that logits are made of: embeddings of tokens, and the context of another network."""
        return self.norm(self.performer(self._embedded(tokens, 0), context, **masks))

    def with_state(
        self, tokens: torch.Tensor, state: PerformerState | None = None, **context: Any
    ) -> tuple[torch.Tensor, PerformerState]:
        """Logits of tokens that follow those of the state, and the state after them, as `Performer.with_state`."""
        embedded = self._embedded(tokens, 0 if state is None else state.length)
        rows, state = self.performer.with_state(embedded, state, **context)
        return self._logits(self.norm(rows)), state

    @torch.no_grad()
    def generate(
        self,
        tokens: torch.Tensor,
        length: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        end: int | None = None,
        generator: torch.Generator | None = None,
        **context: Any,
    ) -> torch.Tensor:
        """At most `length` more tokens [B, length] for each of the beginnings [B,T], T > 0.

        Dropout is off meanwhile.

        Args:
            temperature: divides logits; 0 takes the likeliest token.
            top_k: only so many of the likeliest tokens can be drawn.
            top_p: only the likeliest tokens that together have this probability can be drawn.
            end: a token after which a sequence goes on with nothing but it; all of them there, generation stops.
            generator: of random numbers, on the device of the tokens.
            context: `context` [B,S,C] and `context_padding_mask` [B,S].

        Raises:
            ConfigError: an argument out of range, or attention that keeps no state.
            ShapeError: a beginning without a token, or more positions than `max_length`.
        """
        length = check_positive("length", length)
        choose = _Choice(temperature, top_k, top_p, generator)
        if tokens.dim() != 2 or tokens.shape[1] == 0:
            raise ShapeError(f"tokens is {list(tokens.shape)}; it must be [B,T] with at least one token")
        was_training = self.training
        self.eval()
        try:
            logits, state = self.with_state(tokens, **context)
            found: list[torch.Tensor] = []
            while True:
                token = choose(logits[:, -1])
                if end is not None and found:
                    token = torch.where(found[-1] == end, end, token)
                found.append(token)
                if len(found) == length or (end is not None and bool((token == end).all())):
                    return torch.stack(found, 1)
                logits, state = self.with_state(token[:, None], state)
        finally:
            self.train(was_training)

    def _embedded(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        if tokens.dim() != 2:
            raise ShapeError(f"tokens is {list(tokens.shape)}; it must be [B,L]")
        rows: torch.Tensor = self.embedding(tokens)
        if self.positions is not None:
            last = first + tokens.shape[1]
            if last > self.positions.num_embeddings:
                raise ShapeError(f"{last} positions, but max_length is {self.max_length}")
            rows = rows + self.positions.weight[first:last]
        return self.dropout(rows)

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.linear(rows, self.embedding.weight) if self.head is None else self.head(rows)


def layer_of(modules: torch.nn.ModuleList, i: int) -> Layer:
    """Layer number i, with its type."""
    return cast("Layer", modules[i])


class Layer(torch.nn.Module):
    """Attention and a feed-forward network, each of the norm of what it adds to."""

    def __init__(self, attention: LayerAttention, feed_forward: FeedForward) -> None:
        super().__init__()
        embed_dim = feed_forward.narrow.out_features
        self.attention_norm, self.attention = torch.nn.LayerNorm(embed_dim), attention
        self.feed_forward_norm, self.feed_forward = torch.nn.LayerNorm(embed_dim), feed_forward

    def forward(self, x: torch.Tensor, context: torch.Tensor | None, padding: torch.Tensor | None) -> torch.Tensor:
        rows = self.attention_norm(x)
        return self._fed(x + self.attention(rows, rows if context is None else context, padding))

    def with_state(
        self, x: torch.Tensor, state: Any, first: int, padding: torch.Tensor | None
    ) -> tuple[torch.Tensor, Any]:
        out, state = self.attention.with_state(self.attention_norm(x), state, first, padding)
        return self._fed(x + out), state

    def with_context(
        self, x: torch.Tensor, context: torch.Tensor | None, state: Any, padding: torch.Tensor | None
    ) -> tuple[torch.Tensor, Any]:
        out, state = self.attention.with_context(self.attention_norm(x), context, state, padding)
        return self._fed(x + out), state

    def _fed(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.feed_forward(self.feed_forward_norm(x))


class LayerAttention(torch.nn.Module):
    """Heads from rows, attention, and rows again."""

    def __init__(
        self, embed_dim: int, *, num_heads: int, head_dim: int, rotary: bool, bias: bool, dropout: float, **core: Any
    ) -> None:
        super().__init__()
        self.num_heads, inner = num_heads, num_heads * head_dim
        self.causal = check_flag("causal", core.get("causal", False))
        self.q_proj, self.k_proj, self.v_proj = (torch.nn.Linear(embed_dim, inner, bias) for _ in "qkv")
        self.out_proj = torch.nn.Linear(inner, embed_dim)
        self.rotary = Rotary(head_dim) if rotary else None
        self.core = attention_core(head_dim, num_heads, **core)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, keys_of: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        q, k, v = self._heads(x, keys_of, 0)
        return self._rows(self.core(q, k, v, key_padding_mask=padding))

    def with_state(
        self, x: torch.Tensor, state: Any, first: int, padding: torch.Tensor | None
    ) -> tuple[torch.Tensor, Any]:
        if not self.causal:
            raise ConfigError("attention that looks ahead has no state to continue from; say causal=True")
        q, k, v = self._heads(x, x, first)
        out, state = self._continued(q, k, v, state, causal=True, key_padding_mask=padding)
        return self._rows(out), state

    def with_context(
        self, x: torch.Tensor, context: torch.Tensor | None, state: Any, padding: torch.Tensor | None
    ) -> tuple[torch.Tensor, Any]:
        """Queries read the state of a context, which is made of the context where there is none yet."""
        q, k, v = self._heads(x, x[:, :0] if context is None else context, 0)
        out, state = self._continued(q, k, v, state, causal=False, key_padding_mask=padding)
        return self._rows(out), state

    def _continued(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, state: Any, **options: Any
    ) -> tuple[torch.Tensor, Any]:
        if not hasattr(self.core, "with_state"):
            raise ConfigError("exact attention keeps no state to continue from; choose another feature_map")
        return self.core.with_state(q, k, v, state, **options)  # type: ignore[operator]

    def _heads(self, x: torch.Tensor, keys_of: torch.Tensor, first: int) -> list[torch.Tensor]:
        """Queries, keys and values [B,H,L,D] of rows whose first one has position `first`."""
        projected = (self.q_proj(x), self.k_proj(keys_of), self.v_proj(keys_of))
        q, k, v = (rows.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for rows in projected)
        if self.rotary is not None:
            q, k = self.rotary(q, k, torch.arange(first, first + x.shape[1], device=x.device))
        return [q, k, v]

    def _rows(self, heads: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.out_proj(heads.transpose(1, 2).flatten(2)))


class FeedForward(torch.nn.Module):
    """Two matrices with GELU between them, which another half of the first one's output may multiply."""

    def __init__(self, embed_dim: int, inner: int, gated: bool, dropout: float) -> None:
        super().__init__()
        self.wide = torch.nn.Linear(embed_dim, 2 * inner if gated else inner)
        self.narrow = torch.nn.Linear(inner, embed_dim)
        self.gated, self.dropout = check_flag("gated", gated), torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(x)
        if self.gated:
            x, gate = x.chunk(2, -1)
            return self.dropout(self.narrow(functional.gelu(x) * gate))
        return self.dropout(self.narrow(functional.gelu(x)))


class _Choice:
    """Draws one token of each row of logits [B,num_tokens]."""

    def __init__(
        self, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
    ) -> None:
        if not 0 <= temperature < float("inf"):
            raise ConfigError(f"temperature is {temperature}; it must be at least 0")
        if top_p is not None and not 0 < top_p <= 1:
            raise ConfigError(f"top_p is {top_p}; it must be above 0 and at most 1")
        self.top_k = None if top_k is None else check_positive("top_k", top_k)
        self.temperature, self.top_p, self.generator = temperature, top_p, generator

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if self.temperature == 0:
            return logits.argmax(-1)
        # Sorted, so that what is cut off is a tail; equal logits keep the order of their tokens.
        logits, order = (logits.float() / self.temperature).sort(dim=-1, descending=True, stable=True)
        probabilities = logits.softmax(-1)
        if self.top_p is not None:
            probabilities = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= self.top_p, 0)
        if self.top_k is not None:
            probabilities[:, self.top_k :] = 0
        drawn = torch.multinomial(probabilities, 1, generator=self.generator)
        return order.gather(-1, drawn).squeeze(-1)
