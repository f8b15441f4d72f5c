"""Linear attention in plain torch, chunk by chunk, on any device: memory O(L (D+E) + M E), never all features at once.

The same mathematics as the native kernels, written a second time. It computes what has no native kernel (other
devices, some states), and it is made of differentiable operations only, so that every mode of differentiation, of any
order, can go through it (then autograd keeps the features of every chunk).

Notation: features are `mantissa * 2^exponent` with integer exponents (`features.py`): e_im of query i, e_jm of key j.
v~ = [v, 1] is what a key holds (`values_and_one`). A state holds for each feature m

    n_m = max_j e_jm                          the reference, an integer
    S_m = sum_j phi_jm 2^-n_m v~_j

and query i reads t_i = max_m (e_im + n_m) and N_i = sum_m phi_im 2^(n_m - t_i) S_m; the output is N_i[:E] / N_i[E],
in which t_i cancels. Every power of two that is formed has an exponent of at most 0, so nothing overflows, and what
underflows is smaller than the rounding of what it would be added to. References are integers, so changing one is
exact.

A causal chunk must not share one reference among its keys: a later key would raise it and drown an earlier row. The
triangle of a chunk is therefore cut into its diagonal and squares whose keys all come before all of their rows,

    half = 1, 2, 4, ..:   of every 2 half positions, the last `half` read the first `half`,

and each square has the reference of its own keys. An output never depends on what comes later, in no bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from protperf.torch import states
from protperf.torch.autocast import without_autocast
from protperf.torch.exponents import exponent_of, power_of_two
from protperf.torch.features import Features
from protperf.torch.inputs import Call, Options, poisoned
from protperf.torch.log_linear import Parameters
from protperf.torch.sequences import RowCollector, Sequences, StateCollector
from protperf.torch.states import State

__all__ = ["Output", "favor_attention", "forward", "square_halves"]


class Output(NamedTuple):
    """What a forward pass leaves.

    Shapes: out [B,H,L,E]; den [B,H,L,2], T and p with the denominator p 2^T and p in [1/2, 1) (0, 0 where no key is
    seen, 0, NaN where the output is NaN); state [B or num_segments,H,F,2+E].
    """

    out: torch.Tensor
    den: torch.Tensor
    state: torch.Tensor


def favor_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | Parameters | None,
    state: torch.Tensor | None = None,
    *,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and final state of a checked call, differentiable in every mode and any number of times.

    In omega's place stand the parameters of a map that is given by them; `options.feature_map` then says nothing.
    """
    with without_autocast(q.device):
        done = forward(q, k, v, omega, state, options, in_place=False)
    return done.out, done.state


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    omega: torch.Tensor | Parameters | None,
    state: torch.Tensor | None,
    options: Options,
    *,
    in_place: bool,
) -> Output:
    """The forward pass; `in_place` writes results into their places and cannot be differentiated through."""
    call = Call(q, k, v, omega, options)
    shape = [call.batch, call.heads, call.q_len]
    out = RowCollector([*shape, call.value_dim], q, q.dtype, in_place)
    den = RowCollector([*shape, 2], q, call.dtype, in_place)
    last = StateCollector([call.num_states, call.heads, call.map.width, 2 + call.value_dim], q, call.dtype)
    walk = _causal if options.causal else _noncausal
    for sequences in call.sequences:
        last.put(sequences, walk(call, sequences, state, out, den))
    return Output(out.result(), den.result(), last.result())


def _causal(
    call: Call, sequences: Sequences, given: torch.Tensor | None, out: RowCollector, den: RowCollector
) -> torch.Tensor:
    state, bad = call.first_state(sequences, given)
    for low, high in sequences.chunks(sequences.q_len, call.chunk_size):
        x, bad_query = call.queries(sequences, low, high)
        keys = call.keys(sequences, low, high)
        queries, key_features = call.map.queries(x), call.map.keys(keys.rows, keys.keep)
        exponent, sums = _read_visible(state, queries, key_features, keys.values_and_one)
        bad_so_far = (keys.bad.cumsum(-1) > 0) | bad[..., None]
        _finish(call, sequences, low, exponent, sums, bad_so_far | bad_query, out, den)
        state, bad = states.add(state, key_features, keys.values_and_one), bad_so_far[..., -1]
    return _last_state(call, state, bad)


def _noncausal(
    call: Call, sequences: Sequences, given: torch.Tensor | None, out: RowCollector, den: RowCollector
) -> torch.Tensor:
    state, bad = call.first_state(sequences, given)
    for low, high in sequences.chunks(sequences.kv_len, call.chunk_size):
        keys = call.keys(sequences, low, high)
        state, bad = states.add(state, call.map.keys(keys.rows, keys.keep), keys.values_and_one), bad | keys.bad.any(-1)
    for low, high in sequences.chunks(sequences.q_len, call.chunk_size):
        x, bad_query = call.queries(sequences, low, high)
        exponent, sums = states.read(state, call.map.queries(x))
        _finish(call, sequences, low, exponent, sums, bad[..., None] | bad_query, out, den)
    return _last_state(call, state, bad)


def _read_visible(
    state: State, queries: Features, keys: Features, values_and_one: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row of a chunk reads from the state and from the keys up to its own position."""
    exponent, sums = states.read(state, queries)
    own = queries.exponent + keys.exponent
    top = own.amax(-1)
    weight = (queries.mantissa * keys.mantissa * power_of_two(own - top[..., None])).sum(-1)
    exponent, sums = _combined(exponent, sums, top, weight[..., None] * values_and_one)
    half, rows = 1, values_and_one.shape[2]
    while half < rows:
        exponent, sums = _read_squares(exponent, sums, queries, keys, values_and_one, half)
        half *= 2
    return exponent, sums


def _read_squares(
    exponent: torch.Tensor,
    sums: torch.Tensor,
    queries: Features,
    keys: Features,
    values_and_one: torch.Tensor,
    half: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds what the last `half` of every `2 half` rows read from the first `half`."""
    readers = Features(*(square_halves(x, half)[1] for x in queries))
    writers = Features(*(square_halves(x, half)[0] for x in keys))
    (kept_exponent, read_exponent), (kept_sums, read_sums) = (square_halves(x, half) for x in (exponent, sums))
    reference = writers.exponent.amax(-2, keepdim=True)
    together = readers.exponent + reference
    top = together.amax(-1)
    weights = readers.mantissa * power_of_two(together - top[..., None])
    scores = weights @ (writers.mantissa * power_of_two(writers.exponent - reference)).mT
    read_exponent, read_sums = _combined(read_exponent, read_sums, top, scores @ square_halves(values_and_one, half)[0])
    return (
        torch.stack([kept_exponent, read_exponent], 3).flatten(2, 4),
        torch.stack([kept_sums, read_sums], 3).flatten(2, 4),
    )


def square_halves(x: torch.Tensor, half: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the last `half` of every `2 half` rows: views [n,H,rows / (2 half),half,..] of [n,H,rows,..]."""
    pairs = x.unflatten(2, (x.shape[2] // (2 * half), 2, half))
    return pairs[:, :, :, 0], pairs[:, :, :, 1]


def _combined(
    a_exponent: torch.Tensor, a: torch.Tensor, b_exponent: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of a 2^a_exponent and b 2^b_exponent, relative to the larger exponent."""
    exponent = torch.maximum(a_exponent, b_exponent)
    a = a * power_of_two(a_exponent - exponent)[..., None]
    return exponent, a + b * power_of_two(b_exponent - exponent)[..., None]


def _finish(
    call: Call,
    sequences: Sequences,
    low: int,
    exponent: torch.Tensor,
    sums: torch.Tensor,
    bad: torch.Tensor,
    out: RowCollector,
    den: RowCollector,
) -> None:
    """Divides sums [n,H,C,E+1], and marks the rows `bad` [n,H,C] as NaN."""
    denominator = sums[..., -1:]
    empty = denominator == 0
    mean = torch.where(empty, 0.0, sums[..., :-1] / torch.where(empty, 1.0, denominator))
    # Rounding may carry a mean of the largest values past them.
    largest = torch.finfo(call.dtype).max
    mean = (mean * call.value_unscale).clamp(-largest, largest)
    out.put(sequences, low, poisoned(mean, bad[..., None]))
    shift = torch.where(empty, 0.0, exponent_of(denominator))
    mantissa = denominator.detach() * power_of_two(-shift)
    whole = torch.where(empty, 0.0, exponent[..., None] + shift)
    pair = torch.cat([torch.where(bad[..., None], 0.0, whole), torch.where(bad[..., None], torch.nan, mantissa)], -1)
    den.put(sequences, low, pair)


def _last_state(call: Call, state: State, bad: torch.Tensor) -> torch.Tensor:
    return poisoned(states.exported(state, call.value_unscale), bad[..., None, None])
