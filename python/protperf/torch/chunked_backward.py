"""The backward pass of `chunked.py`: features are made again, so memory is that of inputs and gradients.

Only out and the denominators D_i = p_i 2^T_i are kept from the forward pass. With g~_i = [g_i, -g_i . out_i] / p_i,

    dphi_im = sum_(j seen by i) phi_jm 2^-T_i (g~_i . v~_j)
    dphi_jm = sum_(i that sees j) phi_im 2^-T_i (g~_i . v~_j),     dv~_j = sum_i sum_m phi_im phi_jm 2^-T_i g~_i.

These are two passes of the forward's kind. First queries read keys from left to right. Then keys read queries from
right to left: there a query holds g~_i, its cotangent, where a key holds v~_j, and its exponents are lowered by T_i.
The gradient of the final state is what the second pass starts from, the gradient of the initial state what it ends
with. D_i is at least about each of its own terms, so again no exponent that is formed is much above 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from protperf.torch import states
from protperf.torch.chunked import square_halves
from protperf.torch.exponents import NIL, power_of_two
from protperf.torch.features import Features
from protperf.torch.inputs import Call, Keys, Options
from protperf.torch.log_linear import Parameters
from protperf.torch.sequences import RowCollector, Sequences, StateCollector
from protperf.torch.states import State

__all__ = ["Gradients", "backward"]


class Gradients(NamedTuple):
    """Gradients of the inputs, in their types; of the map's parameters where asked for; `state` [..,F,2+E]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    parameters: tuple[torch.Tensor | None, ...]
    state: torch.Tensor


class _Queries(NamedTuple):
    """Queries of a chunk in the backward pass.

    Shapes: rows [n,H,C,D]; features; lowered, the features with exponents less T_i; cotangent [n,H,C,E+1], which is
    g~_i.
    """

    rows: torch.Tensor
    features: Features
    lowered: Features
    cotangent: torch.Tensor


def backward(
    grad: torch.Tensor,
    grad_state: torch.Tensor | None,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | Parameters | None, torch.Tensor | None],
    out: torch.Tensor,
    den: torch.Tensor,
    options: Options,
    *,
    with_parameters: bool,
) -> Gradients:
    """Gradients of q, k, v, omega and the initial state (`inputs`), given those of the output and the final state.

    In omega's place stand the parameters of a map that is given by them.
    """
    q, k, v, omega, state = inputs
    return _Backward(Call(q, k, v, omega, options), grad, grad_state, state, out, den, with_parameters).run()


class _Backward:
    def __init__(
        self,
        call: Call,
        grad: torch.Tensor,
        grad_state: torch.Tensor | None,
        state: torch.Tensor | None,
        out: torch.Tensor,
        den: torch.Tensor,
        with_parameters: bool,
    ) -> None:
        self.call, self.grad, self.grad_state, self.state, self.out, self.den = call, grad, grad_state, state, out, den
        self.with_parameters = with_parameters
        self.dq, self.dk, self.dv = (RowCollector(x.shape, x, x.dtype, True) for x in (call.q, call.k, call.v))
        shape = [call.num_states, call.heads, call.map.width, 2 + call.value_dim]
        self.dstate = StateCollector(shape, call.q, call.dtype)
        self.dparameters: dict[str, torch.Tensor] = {}

    def run(self) -> Gradients:
        for sequences in self.call.sequences:
            self.dstate.put(
                sequences, self._causal(sequences) if self.call.options.causal else self._noncausal(sequences)
            )
        parameters = self.call.parameter_gradients(self.dparameters) if self.with_parameters else ()
        return Gradients(self.dq.result(), self.dk.result(), self.dv.result(), parameters, self.dstate.result())

    def _causal(self, sequences: Sequences) -> torch.Tensor:
        call = self.call
        chunks = sequences.chunks(sequences.q_len, call.chunk_size)
        state, bad = call.first_state(sequences, self.state)
        for low, high in chunks:
            queries, keys = self._queries(sequences, low, high), call.keys(sequences, low, high)
            key_features = call.map.keys(keys.rows, keys.keep)
            dfeatures = _read(state, queries.lowered, queries.cotangent)
            _add_visible_keys(dfeatures, queries.lowered, queries.cotangent, key_features, keys.values_and_one)
            self._put_query_gradient(sequences, low, queries, dfeatures)
            state, bad = states.add(state, key_features, keys.values_and_one), bad | keys.bad.any(-1)
        later = self._last_cotangent(sequences, state.reference, bad)
        for low, high in reversed(chunks):
            queries, keys = self._queries(sequences, low, high), call.keys(sequences, low, high)
            key_features = call.map.keys(keys.rows, keys.keep)
            dfeatures, dvalues = _read(later, key_features, keys.values_and_one), _read_values(later, key_features)
            _add_visible_queries(
                dfeatures, dvalues, key_features, keys.values_and_one, queries.lowered, queries.cotangent
            )
            self._put_key_gradient(sequences, low, keys, key_features, dfeatures, dvalues)
            later = states.add(later, queries.lowered, queries.cotangent)
        return self._first_gradient(sequences, later)

    def _noncausal(self, sequences: Sequences) -> torch.Tensor:
        call = self.call
        state, bad = call.first_state(sequences, self.state)
        key_chunks = sequences.chunks(sequences.kv_len, call.chunk_size)
        for low, high in key_chunks:
            keys = call.keys(sequences, low, high)
            state, bad = (
                states.add(state, call.map.keys(keys.rows, keys.keep), keys.values_and_one),
                bad | keys.bad.any(-1),
            )
        later = self._last_cotangent(sequences, state.reference, bad)
        for low, high in sequences.chunks(sequences.q_len, call.chunk_size):
            queries = self._queries(sequences, low, high)
            dfeatures = _read(state, queries.lowered, queries.cotangent)
            self._put_query_gradient(sequences, low, queries, dfeatures)
            later = states.add(later, queries.lowered, queries.cotangent)
        for low, high in key_chunks:
            keys = call.keys(sequences, low, high)
            key_features = call.map.keys(keys.rows, keys.keep)
            dfeatures, dvalues = _read(later, key_features, keys.values_and_one), _read_values(later, key_features)
            self._put_key_gradient(sequences, low, keys, key_features, dfeatures, dvalues)
        return self._first_gradient(sequences, later)

    def _queries(self, sequences: Sequences, low: int, high: int) -> _Queries:
        call = self.call
        rows, _ = call.queries(sequences, low, high)
        grad, out, den = (sequences.take(x, low, high).to(call.dtype) for x in (self.grad, self.out, self.den))
        mantissa = den[..., 1:]
        bad = mantissa.isnan()
        counts = (mantissa != 0) & ~bad
        inside = sequences.inside(low, high)
        if inside is not None:
            counts, bad = counts & inside[..., None], bad & inside[..., None]
        grad = torch.where(counts | bad, grad, 0.0)
        along = -(grad * torch.where(counts, out, 0.0)).sum(-1, keepdim=True) * call.value_scale
        cotangent = torch.cat([grad, along], -1) / torch.where(counts, mantissa, 1.0)
        cotangent = torch.where(bad, torch.where((grad != 0).any(-1, keepdim=True), torch.nan, 0.0), cotangent)
        features = call.map.queries(rows)
        # A row that takes no part raises no reference.
        exponent = torch.where(counts, features.exponent - den[..., :1], NIL)
        lowered = Features(torch.where(counts, features.mantissa, 0.0), exponent)
        return _Queries(rows, features, lowered, cotangent)

    def _put_query_gradient(self, sequences: Sequences, low: int, queries: _Queries, dfeatures: torch.Tensor) -> None:
        # Values were scaled, and so was all that v~ went into.
        dfeatures = dfeatures * self.call.value_unscale
        dx, dparameters = self.call.map.queries_gradient(queries.rows, queries.features, dfeatures)
        self._add_parameters(dparameters)
        self.dq.put(sequences, low, dx)

    def _put_key_gradient(
        self,
        sequences: Sequences,
        low: int,
        keys: Keys,
        features: Features,
        dfeatures: torch.Tensor,
        dvalues: torch.Tensor,
    ) -> None:
        dfeatures = dfeatures * self.call.value_unscale
        dx, dparameters = self.call.map.keys_gradient(keys.rows, features, dfeatures)
        self._add_parameters(dparameters)
        exists = (keys.keep | keys.bad)[..., None]
        self.dk.put(sequences, low, self.call.for_key_heads(torch.where(exists, dx, 0.0)))
        self.dv.put(sequences, low, self.call.for_key_heads(torch.where(exists, dvalues[..., :-1], 0.0)))

    def _add_parameters(self, gradients: Mapping[str, torch.Tensor]) -> None:
        for name, gradient in gradients.items() if self.with_parameters else ():
            before = self.dparameters.get(name)
            self.dparameters[name] = gradient if before is None else before + gradient

    def _last_cotangent(self, sequences: Sequences, reference: torch.Tensor, bad: torch.Tensor) -> State:
        """Where the second pass starts: the gradient of the final state, as of a query that reads it."""
        call = self.call
        shape = (sequences.count, call.heads, call.map.width, call.value_dim + 1)
        if self.grad_state is None:
            return states.empty(shape, call.map.num_references, call.dtype, call.q.device)
        grad = sequences.take_states(self.grad_state)
        arrives = (grad[..., 1:] != 0).any(-1).any(-1)
        sums = torch.cat([grad[..., 2:], grad[..., 1:2] * call.value_scale], -1)
        sums = torch.where((bad & arrives)[..., None, None], torch.nan, sums)
        return State(-reference, sums)

    def _first_gradient(self, sequences: Sequences, later: State) -> torch.Tensor:
        """The gradient of the initial state, which every query reads; its references have none."""
        call = self.call
        if self.state is None:
            return later.sums.new_zeros(*later.sums.shape[:3], call.value_dim + 2)
        reference = states.references(sequences.take_states(self.state))
        sums = later.sums * power_of_two(later.reference + reference)[..., None]
        return torch.cat([torch.zeros_like(sums[..., :1]), sums[..., -1:] * call.value_unscale, sums[..., :-1]], -1)


def _read(state: State, features: Features, held: torch.Tensor) -> torch.Tensor:
    """Gradient [n,H,C,F] of the mantissas of rows that read a state, each for what it holds [n,H,C,E+1]."""
    return power_of_two(features.exponent + state.reference[..., None, :]) * (held @ state.sums.mT)


def _read_values(state: State, features: Features) -> torch.Tensor:
    """What rows read from a state, [n,H,C,E+1]."""
    powers = power_of_two(features.exponent + state.reference[..., None, :])
    return (features.mantissa * powers) @ state.sums


def _add_visible_keys(
    dfeatures: torch.Tensor, queries: Features, cotangent: torch.Tensor, keys: Features, values_and_one: torch.Tensor
) -> None:
    """Adds to the gradient of queries what comes from keys of the chunk up to their own position."""
    own = power_of_two(queries.exponent + keys.exponent)
    dfeatures += own * keys.mantissa * (cotangent * values_and_one).sum(-1, keepdim=True)
    half = 1
    while half < cotangent.shape[2]:
        (_, readers), (writers, _) = _square(queries, half), _square(keys, half)
        pull, weights = _against(readers, writers)
        along = square_halves(cotangent, half)[1] @ square_halves(values_and_one, half)[0].mT
        square_halves(dfeatures, half)[1].add_(pull * (along @ weights))
        half *= 2


def _add_visible_queries(
    dfeatures: torch.Tensor,
    dvalues: torch.Tensor,
    keys: Features,
    values_and_one: torch.Tensor,
    queries: Features,
    cotangent: torch.Tensor,
) -> None:
    """Adds to the gradients of keys what comes from queries of the chunk from their own position on."""
    own = power_of_two(queries.exponent + keys.exponent)
    dfeatures += own * queries.mantissa * (cotangent * values_and_one).sum(-1, keepdim=True)
    dvalues += (own * queries.mantissa * keys.mantissa).sum(-1, keepdim=True) * cotangent
    half = 1
    while half < cotangent.shape[2]:
        (readers, _), (_, writers) = _square(keys, half), _square(queries, half)
        pull, weights = _against(readers, writers)
        later = square_halves(cotangent, half)[1]
        along = square_halves(values_and_one, half)[0] @ later.mT
        square_halves(dfeatures, half)[0].add_(pull * (along @ weights))
        square_halves(dvalues, half)[0].add_(((readers.mantissa * pull) @ weights.mT) @ later)
        half *= 2


def _square(features: Features, half: int) -> tuple[Features, Features]:
    (first, last), (first_exponent, last_exponent) = (square_halves(x, half) for x in features)
    return Features(first, first_exponent), Features(last, last_exponent)


def _against(readers: Features, writers: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers of readers, and weights of writers, both relative to the largest exponent of the writers."""
    reference = writers.exponent.amax(-2, keepdim=True)
    weights = writers.mantissa * power_of_two(writers.exponent - reference)
    return power_of_two(readers.exponent + reference), weights
