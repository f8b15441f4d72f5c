"""From the tensors of a call to the rows of a chunk: gathered, in the type of the computation, and all finite.

A row that holds a number that is not finite is set to zero and flagged, because 0 * NaN would reach outputs that do
not see it; whoever sees it is given NaN at the end (`poisoned`). A head whose omega is not finite, and a sequence whose
state is not, are flagged whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from protperf import _arguments
from protperf.torch import states
from protperf.torch.exponents import exponent_of, power_of_two
from protperf.torch.features import FeatureMap
from protperf.torch.log_linear import LogLinearMap, Parameters
from protperf.torch.sequences import Sequences, batch_sequences, packed_sequences
from protperf.torch.states import State

__all__ = ["Call", "Keys", "Options", "computed_type", "poisoned"]

CHUNK_SIZE = 256
"""Rows of a chunk, a power of two: longer ones take fewer steps, with more squares in each and longer sums in one."""


def computed_type(stored: torch.dtype) -> torch.dtype:
    """The type of the computation on tensors of a type: 16-bit types are widened, a chunk or a call at a time."""
    return stored if stored in (torch.float32, torch.float64) else torch.float32


class Options(NamedTuple):
    """Options of a call, checked, in the order of the operators' arguments."""

    feature_map: str
    causal: bool
    kernel_epsilon: float
    cu_seqlens: torch.Tensor | None = None
    key_padding_mask: torch.Tensor | None = None
    backend: str = "auto"


class Keys(NamedTuple):
    """Keys of a chunk.

    Shapes: rows [n,H,C,D]; values_and_one [n,H,C,E+1], the values, scaled, and a 1; keep and bad, bool [n,H,C]:
    whether the key counts, and whether it exists but is not finite.
    """

    rows: torch.Tensor
    values_and_one: torch.Tensor
    keep: torch.Tensor
    bad: torch.Tensor


class Call:
    """The tensors of one call, its feature map, and how its rows are walked."""

    def __init__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        omega: torch.Tensor | Parameters | None,
        options: Options,
    ) -> None:
        self.q, self.k, self.v = q, k, v
        self.options = options
        self.dtype = computed_type(q.dtype)
        self.batch, self.heads, self.q_len, self.head_dim = q.shape
        self.kv_len, self.value_dim = v.shape[2], v.shape[3]
        self.bad_heads, self.map = self._map(omega)
        self._parameters = omega if isinstance(omega, Parameters) else (omega,)
        self.chunk_size = CHUNK_SIZE
        self.sequences = self._sequences()
        power = _value_power(v, self.dtype)
        self.value_scale, self.value_unscale = power_of_two(-power), power_of_two(power)

    def _map(self, omega: torch.Tensor | Parameters | None) -> tuple[torch.Tensor, FeatureMap | LogLinearMap]:
        """Heads whose numbers are not all finite, bool [H], and the map, in which such numbers are 0."""
        if isinstance(omega, Parameters):
            return omega.bad_heads(self.heads), LogLinearMap(omega.usable(self.dtype), self.head_dim)
        bad_heads = torch.zeros(self.heads, dtype=torch.bool, device=self.q.device)
        if omega is not None:
            omega = omega.to(self.dtype)
            finite = omega.isfinite()
            bad_heads = (~finite.all(-1).all(-1)).expand(self.heads)
            omega = torch.where(finite, omega, 0.0)
        name, epsilon = self.options.feature_map, self.options.kernel_epsilon
        return bad_heads, FeatureMap(name, omega, self.head_dim, epsilon)

    def parameter_gradients(self, sums: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
        """Gradients of omega or of the parameters, in their types, from the sums of those that rows gave."""
        found = self.map.parameter_gradients(sums)
        pairs = zip(found, self._parameters, strict=True)
        return tuple(None if x is None or given is None else x.to(given.dtype) for x, given in pairs)

    def _sequences(self) -> list[Sequences]:
        borders = self.options.cu_seqlens
        if borders is None:
            return batch_sequences(self.batch, self.q_len, self.kv_len, self.options.key_padding_mask)
        listed = borders.tolist()
        _arguments.check_segments(borders.shape, "int64", listed, self.q_len)
        return packed_sequences(listed, self.chunk_size, self.q.device)

    @property
    def num_states(self) -> int:
        """Batch entries, or packed segments."""
        borders = self.options.cu_seqlens
        return self.batch if borders is None else len(borders) - 1

    def queries(self, sequences: Sequences, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Query rows [n,H,C,D], and which of them were not finite [n,H,C]."""
        rows = sequences.take(self.q, low, high).to(self.dtype)
        finite = rows.isfinite().all(-1)
        return torch.where(finite[..., None], rows, 0.0), ~finite

    def keys(self, sequences: Sequences, low: int, high: int) -> Keys:
        """Keys and payloads, repeated for the query heads that share them."""
        rows, values = (sequences.take(x, low, high).to(self.dtype) for x in (self.k, self.v))
        finite = rows.isfinite().all(-1) & values.isfinite().all(-1)
        exists = sequences.exists(low, high, rows.device)
        keep, bad = finite, ~finite
        if exists is not None:
            keep, bad = keep & exists, bad & exists
        rows = torch.where(keep[..., None], rows, 0.0)
        values = torch.where(keep[..., None], values, 0.0) * self.value_scale
        values_and_one = torch.cat([values, values.new_ones(*values.shape[:3], 1)], -1)
        return Keys(*(self._for_query_heads(x) for x in (rows, values_and_one, keep, bad)))

    def _for_query_heads(self, x: torch.Tensor) -> torch.Tensor:
        group = self.heads // max(x.shape[1], 1)
        return x if group <= 1 else x.repeat_interleave(group, 1)

    def for_key_heads(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the query heads that share a key."""
        shared = self.k.shape[1]
        return x if shared == self.heads else x.unflatten(1, (shared, self.heads // shared)).sum(2)

    def first_state(self, sequences: Sequences, state: torch.Tensor | None) -> tuple[State, torch.Tensor]:
        """The state before the first key, and the sequences [n,H] whose every output is not finite."""
        bad = self.bad_heads.expand(sequences.count, self.heads)
        if state is None:
            shape = (sequences.count, self.heads, self.map.width, self.value_dim + 1)
            return states.empty(shape, self.map.num_references, self.dtype, self.q.device), bad
        state = sequences.take_states(state)
        finite = state.isfinite().all(-1).all(-1)
        state = torch.where(finite[..., None, None], state, 0.0)
        return states.imported(state, self.map.num_references, self.value_scale), bad | ~finite


def _value_power(v: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The power of two that values are divided by before they are summed: 0 unless sums of them could overflow."""
    largest = torch.zeros((), dtype=dtype, device=v.device)
    v = v.detach()
    if v.numel():
        # In parts, so that no second copy of v is made.
        for part in v.split(4096, 2):
            magnitude = part.to(dtype).abs()
            largest = torch.maximum(largest, torch.where(magnitude.isfinite(), magnitude, 0.0).amax())
    return (exponent_of(largest) - (63 if dtype == torch.float32 else 511)).clamp(min=0)


class _PoisonedInGraph(torch.autograd.Function):
    """NaN where `flag` is set, and NaN gradients from every such entry that a gradient other than 0 arrives at."""

    @staticmethod
    def forward(x: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
        return torch.where(flag, torch.nan, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (flag,) = ctx.saved_tensors
        return torch.where(flag & (grad != 0), torch.nan, grad), None


class _Poisoned(_PoisonedInGraph):
    """The same with forward mode and `vmap`. The compiler takes no gradient of a function that has a `jvp`."""

    generate_vmap_rule = True

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: Any) -> torch.Tensor:
        (flag,) = ctx.saved_tensors
        return torch.where(flag, torch.nan, tangent)


def poisoned(x: torch.Tensor, flag: torch.Tensor) -> torch.Tensor:
    """NaN in the entries of x that saw something that is not finite, and in every derivative through them."""
    in_graph = torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    result: torch.Tensor = (_PoisonedInGraph if in_graph else _Poisoned).apply(x, flag)
    return result
