"""Passes whose bits are pinned besides plain attention: through states, by parameters, exact, and whole blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from corpus import Array, input_scale, near_normal

import protperf
from protperf.torch import BlockWeights, favor_attention_with_state, merge_states, transformer_block

STATE_LENGTHS = (1, 63, 64, 130)
# Around the lanes and the chunk, with one that is empty and one that is cut into squares.
EXACT_SHAPES = ((1, 1, 1), (3, 2, 5), (17, 12, 9), (64, 33, 64), (65, 16, 3), (300, 64, 31))
BLOCK_LENGTHS = (1, 17, 0, 64, 130)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def drawn(rng: np.random.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.from_numpy(near_normal(rng, *shape)).to(dtype)


def states(feature_map: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Outputs and states of a sequence read in pieces, and states merged."""
    torch.set_num_threads(1)
    rng = generator(11)
    omega = torch.from_numpy(near_normal(rng, 70, 9))
    scale = 0.5 if feature_map == "trigonometric" else 3.0
    state, seen = None, []
    for length in STATE_LENGTHS:
        q, k = (torch.from_numpy(scale * near_normal(rng, 2, 4, length, 9)).to(dtype) for _ in range(2))
        v = torch.from_numpy(near_normal(rng, 2, 2, length, 5)).to(dtype)
        out, state = favor_attention_with_state(q, k[:, :2], v, omega, state, feature_map=feature_map)
        seen.append(state)
        yield from (out, state)
    yield merge_states(seen[0], seen[-1])


def state_gradients(feature_map: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Gradients of inputs, omega and the state before, from what arrives at outputs and at the state after."""
    torch.set_num_threads(2)
    for length, causal, borders in ((1, True, None), (130, True, None), (70, False, None), (90, True, (0, 20, 90))):
        rng = generator(length)
        omega = torch.from_numpy(near_normal(rng, 33, 9)).requires_grad_()
        segments = 1 if borders is None else len(borders) - 1
        start = input_scale(feature_map) * drawn(rng, dtype, segments, 2, 40, 9), drawn(rng, dtype, segments, 2, 40, 5)
        _, state = favor_attention_with_state(start[0], *start, omega.detach(), feature_map=feature_map)
        inputs = [input_scale(feature_map) * drawn(rng, dtype, 1, 2, length, 9) for _ in range(2)]
        leaves = [*inputs, drawn(rng, dtype, 1, 2, length, 5), omega, state]
        for leaf in leaves:
            leaf.requires_grad_()
        choice = {"causal": causal, "cu_seqlens": None if borders is None else torch.tensor(borders)}
        found = favor_attention_with_state(*leaves, feature_map=feature_map, **choice)
        arriving = [drawn(rng, dtype, *each.shape) for each in found]
        # References are constants to the derivative.
        arriving[1][..., 0] = 0
        yield from (*found, *torch.autograd.grad(found, leaves, arriving))


def log_linear(dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Outputs, states and all gradients of maps that are given by their parameters, with some left out and with all."""
    torch.set_num_threads(2)
    for length, heads, whole in ((1, (), False), (65, (), True), (130, (2,), True), (200, (2,), False)):
        rng = generator(length)
        leaves = [
            drawn(rng, dtype, 1, 2, length, 9),
            drawn(rng, dtype, 1, 2, length, 9),
            drawn(rng, dtype, 1, 2, length, 5),
        ]
        wide = torch.float64
        parameters = [drawn(rng, wide, *heads, 37, 9)]
        if whole:
            shapes = ((*heads, 37, 9), (*heads, 9), (*heads, 37), (*heads, 37))
            parameters += [drawn(rng, wide, *shape) for shape in shapes]
        leaves += parameters
        for leaf in leaves:
            leaf.requires_grad_()
        found = favor_attention_with_state(*leaves[:3], None, feature_map=protperf.LogLinear(*leaves[3:]))
        arriving = [drawn(rng, dtype, *each.shape) for each in found]
        arriving[1][..., 0] = 0
        yield from (*found, *torch.autograd.grad(found, leaves, arriving))


def exact(dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Outputs of exact attention, plain, padded, packed and with grouped queries, on one thread and on two."""
    numpy_type = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    for length, head_dim, value_dim in EXACT_SHAPES:
        for causal in (False, True):
            rng = generator(length)

            def tensor(heads: int, width: int, rng: np.random.Generator = rng, length: int = length) -> Array:
                return near_normal(rng, 1, heads, length, width).astype(numpy_type)

            q, k, v = tensor(4, head_dim), tensor(2, head_dim), tensor(2, value_dim)
            mask = (np.arange(length) % 5 == 3)[None]
            borders = np.array([0, length // 3, length // 3, length])
            for choice in ({}, {"key_padding_mask": mask}, {"cu_seqlens": borders}):
                alone, shared = (_exact(q, k, v, threads, causal=causal, **choice) for threads in (1, 2))
                if not torch.equal(alone, shared):
                    raise SystemExit(f"the number of threads changes bits of exact attention at length {length}")
                yield alone


def _exact(q: Array, k: Array, v: Array, threads: int, **choice: object) -> torch.Tensor:
    torch.set_num_threads(threads)
    return torch.from_numpy(protperf.softmax_attention(q, k, v, **choice))


def block(attention: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Outputs and gradients of a block of a network, where queries and keys have a length of 1."""
    torch.set_num_threads(2)
    for causal in (False, True):
        rng = generator(5)
        length, heads, head_dim, width, inner = sum(BLOCK_LENGTHS), 3, 16, 19, 29
        omega = None if attention == "exact" else drawn(rng, dtype, heads, 24, head_dim)
        weights = BlockWeights(
            drawn(rng, dtype, width),
            drawn(rng, dtype, 3 * heads * head_dim, width),
            # Its exponential is 1 in every library.
            torch.zeros(heads, dtype=dtype),
            omega,
            drawn(rng, dtype, width, heads * head_dim),
            drawn(rng, dtype, width),
            drawn(rng, dtype, 2 * inner, width),
            drawn(rng, dtype, width, inner),
        )
        hidden = drawn(rng, dtype, length, width)
        leaves = [hidden, *(each for each in weights if each is not None and each is not omega)]
        for leaf in leaves:
            leaf.requires_grad_()
        rotary = drawn(rng, dtype, length, head_dim // 2), drawn(rng, dtype, length, head_dim // 2)
        borders = torch.tensor(np.cumsum([0, *BLOCK_LENGTHS]))
        out = transformer_block(
            hidden, weights, rotary, borders, num_heads=heads, attention=attention, causal=causal
        )  # fmt: skip
        yield from (out, *torch.autograd.grad(out, leaves, drawn(rng, dtype, *out.shape)))
