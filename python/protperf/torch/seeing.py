"""What attention looks at: weights of some positions or of all, and their product over the layers of a model.

Attention is linear in its values: out = W v. So a row of W is the gradient of an output with respect to the values,
and W times any matrix is the output for those values. Both hold for every module of `protperf.torch.nn`, and cost what
attention itself costs: O((L + S) M) for one row, where all of W takes O(L S).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from protperf.errors import ConfigError, ShapeError
from protperf.torch.fitting import FITTED_MAPS
from protperf.torch.nn.core import ExactAttention
from protperf.torch.nn.favor import FavorAttention
from protperf.torch.nn.fitted import FittedAttention
from protperf.torch.nn.learned import LearnedAttention
from protperf.torch.nn.windowed import WindowedHeads
from protperf.torch.regime import Regime, measure

__all__ = ["Seen", "advice", "attention_map", "attention_rows", "check", "rollout", "rollout_rows", "watch"]

_CORES = (WindowedHeads, FittedAttention, FavorAttention, LearnedAttention, ExactAttention)
_COLUMNS = 256
"""Columns of W that are computed at once."""


class Seen(NamedTuple):
    """One call of an attention module: `name` in its model, the module, its queries and keys, and its other arguments.

    Shapes: q [B,H,L,D], k [B,Hk,S,D].
    """

    name: str
    core: torch.nn.Module
    q: torch.Tensor
    k: torch.Tensor
    options: dict[str, Any]

    def rows(self, positions: Sequence[int]) -> torch.Tensor:
        """Weights [B,H,n,S] of these queries; see `attention_rows`."""
        return attention_rows(self.core, self.q, self.k, positions, **self.options)

    def map(self) -> torch.Tensor:
        """Weights [B,H,L,S] of all queries; see `attention_map`."""
        return attention_map(self.core, self.q, self.k, **self.options)

    @property
    def estimates_softmax(self) -> bool:
        """Whether the module has heads whose error against softmax is to be asked for."""
        return getattr(self._estimator()[0], "feature_map", None) in FITTED_MAPS

    def regime(self, **options: Any) -> Regime:
        """How well its heads can estimate softmax for these inputs; see `protperf.torch.regime.measure`.

        Padding is left out. It is the estimate for all keys, also where `causal` or borders of sequences hide some.

        Args:
            options: of `measure`, in place of what the module has.

        Raises:
            ConfigError: its map does not estimate softmax, such as `relu`.
        """
        core, q, k = self._estimator()
        if not self.estimates_softmax:
            raise ConfigError(f"{self.name or 'the module'} does not estimate softmax: {core}")
        favor = core.favor if isinstance(core, FittedAttention) else core
        shift = bool(getattr(core, "shift", False))
        given = {"feature_map": core.feature_map, "num_features": favor.num_features, "shift": shift}
        return measure(q, k, **{**given, "key_padding_mask": self.options.get("key_padding_mask"), **options})

    def _estimator(self) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """The module of the heads without a window, with their queries and keys."""
        if not isinstance(self.core, WindowedHeads):
            return self.core, self.q, self.k
        (q, k), _ = self.core.split(self.q, self.k)
        return self.core.core, q, k


@contextlib.contextmanager
def watch(model: torch.nn.Module) -> Iterator[list[Seen]]:
    """Collect every call of an attention module of this package inside of `model`, in the order of the calls.

    The tensors are kept without their graph. A model whose attention is one native operator, such as a network of
    `protperf.lm` with `engine="native"`, has no such calls.

        with watch(model) as seen:
            model(tokens)
        seen[0].rows([17])
    """
    seen: list[Seen] = []
    inner: set[torch.nn.Module] = set()
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, _CORES) and module not in inner:
            inner.update(module.modules())
            hooks.append(module.register_forward_pre_hook(_collector(name, seen), with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def advice(seen: Sequence[Seen]) -> list[str]:
    """A line for each head of the calls that estimate softmax: the error to expect, and what would mend it."""
    return [f"{call.name}: {line}" for call in seen if call.estimates_softmax for line in call.regime().advice()]


def check(model: torch.nn.Module, *inputs: Any, **keywords: Any) -> list[str]:
    """Call `model` once without gradients, and warn of every head that cannot estimate softmax well for its inputs.

    A model, or one attention module, called with q, k and v. What is measured is what `Seen.regime` measures, at its
    cost, so call it now and then and not in every step.

    Returns: the lines of the warnings, each with the name of the layer, the number of the head among those that
    estimate, and the advice.

    Raises:
        ConfigError: no attention was called that estimates softmax, so there is nothing to check.
    """
    with torch.no_grad(), watch(model) as seen:
        model(*inputs, **keywords)
    estimators = [call for call in seen if call.estimates_softmax]
    if not estimators:
        raise ConfigError(f"{type(model).__name__} called no attention of protperf.torch.nn that estimates softmax")
    found = []
    for call in estimators:
        regime = call.regime()
        fine = regime.is_fine.tolist()
        for line in (line for line, is_fine in zip(regime.advice(), fine, strict=True) if not is_fine):
            found.append(f"{call.name or type(call.core).__name__}: {line}")
            warnings.warn(found[-1], stacklevel=2)
    return found


def attention_rows(
    core: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, positions: Sequence[int], **options: Any
) -> torch.Tensor:
    """The weights with which some queries see every key, in time and memory linear in length for each.

    Shapes: q [B,H,L,D], k [B,Hk,S,D], positions [n]; returns [B,H,n,S]. A row sums to 1, or is 0 where no key is seen.

    Args:
        core: a module that is called as `FavorAttention` is.
        options: of the call, such as `causal` and `key_padding_mask`.

    Raises:
        ConfigError: a position that is not from 0 to L - 1.
    """
    return _times_weights(core, q, k, _one_hot(q, positions).expand(*q.shape[:2], -1, -1), options)


def attention_map(core: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, **options: Any) -> torch.Tensor:
    """The weights of all queries, [B,H,L,S]; arguments as in `attention_rows`."""
    identity = torch.eye(k.shape[2], dtype=q.dtype, device=q.device)
    parts = [_weights_times(core, q, k, columns.expand(*k.shape[:2], -1, -1), options) for columns in _parts(identity)]
    return torch.cat(parts, -1) if parts else q.new_zeros(*q.shape[:3], 0)


def rollout(seen: Sequence[Seen]) -> torch.Tensor:
    """How much of each input position is in each output position after all layers, [B,L,L], if values were passed on.

    The product over layers of the mean of residual stream and attention, (1 + W) / 2, where W is the mean over heads.

    Args:
        seen: calls of self-attention, each on the output of the one before.

    Raises:
        ConfigError: no calls; ShapeError: calls of other lengths or batch sizes than the first.

    Source: Abnar and Zuidema 2020, arXiv:2005.00928.
    """
    q = _first_queries(seen)
    identity = torch.eye(q.shape[2], dtype=q.dtype, device=q.device).expand(q.shape[0], -1, -1)
    parts = []
    for flow in _parts(identity):
        for call in seen:
            values = flow[:, None].expand(-1, call.k.shape[1], -1, -1)
            attended = _weights_times(call.core, call.q, call.k, values, call.options).mean(1)
            flow = (flow + attended) / 2
        parts.append(flow)
    return torch.cat(parts, -1) if parts else identity


def rollout_rows(seen: Sequence[Seen], positions: Sequence[int]) -> torch.Tensor:
    """The rows of `rollout` for some output positions, [B,n,L], in time and memory linear in length for each."""
    q = _first_queries(seen)
    flow = _one_hot(q, positions).expand(q.shape[0], -1, -1)
    for call in reversed(seen):
        rows = flow[:, None].expand(-1, call.q.shape[1], -1, -1)
        flow = (flow + _times_weights(call.core, call.q, call.k, rows, call.options).mean(1)) / 2
    return flow


@torch.no_grad()
def _weights_times(
    core: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, columns: torch.Tensor, options: Mapping[str, Any]
) -> torch.Tensor:
    """W x for columns x [B,Hk,S,n]: [B,H,L,n]."""
    found: torch.Tensor = core(q, k, columns, **options)
    return found


def _times_weights(
    core: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, rows: torch.Tensor, options: Mapping[str, Any]
) -> torch.Tensor:
    """X W for rows x [B,H,n,L]: [B,H,n,S], the gradient of X out in the values."""
    with torch.inference_mode(False), torch.enable_grad():
        # What was made in inference mode has no gradients; and heads that share keys would add theirs up.
        q, k = q.detach().clone(), k.detach().repeat_interleave(q.shape[1] // k.shape[1], 1)
        values = q.new_zeros(*k.shape[:3], rows.shape[2], requires_grad=True)
        (found,) = torch.autograd.grad(core(q, k, values, **options), values, rows.mT)
    return found.mT


def _one_hot(q: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    wrong = [i for i in positions if not 0 <= i < q.shape[2]]
    if wrong:
        raise ConfigError(f"positions has {wrong[0]}; it must be from 0 to {q.shape[2] - 1}")
    places = torch.tensor(list(positions), dtype=torch.int64, device=q.device)
    return (places[:, None] == torch.arange(q.shape[2], device=q.device)).to(q.dtype)


def _parts(matrix: torch.Tensor) -> Sequence[torch.Tensor]:
    """Columns, so many at a time that memory is that of a head."""
    return matrix.split(_COLUMNS, -1) if matrix.shape[-1] else ()


def _first_queries(seen: Sequence[Seen]) -> torch.Tensor:
    if not seen:
        raise ConfigError("seen is empty; watch a model that computes attention by modules of protperf.torch.nn")
    first = seen[0].q
    for call in seen:
        needed = (first.shape[0], first.shape[2], first.shape[2])
        if (call.q.shape[0], call.q.shape[2], call.k.shape[2]) != needed:
            found = f"{call.name} has {call.q.shape[2]} queries and {call.k.shape[2]} keys"
            raise ShapeError(f"{found}; a rollout needs self-attention of one length, {first.shape[2]}")
    return first


def _collector(name: str, seen: list[Seen]) -> Callable[..., None]:
    def collect(core: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        q, k = args[:2]
        seen.append(Seen(name, core, q.detach(), k.detach(), options))

    return collect
