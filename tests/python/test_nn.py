"""The module: a buffer that is saved, drawn from a seed and never redrawn by itself."""

import copy

import pytest
import torch
from attention_inputs import same_bits, tensors

import protperf
from protperf.torch import favor_attention
from protperf.torch.nn import FavorAttention


def test_forward_is_favor_attention_with_its_omega():
    q, k, v, _ = tensors(1, 2, 20, dtype=torch.float32)
    module = FavorAttention(8, 32, feature_map="hyperbolic", causal=True)
    needed = favor_attention(q, k, v, module.omega, feature_map="hyperbolic", causal=True)
    assert same_bits(module(q, k, v), needed)
    assert not list(module.parameters())


def test_omega_is_saved_and_loaded():
    first, second = FavorAttention(8, 32, seed=1), FavorAttention(8, 32, seed=2)
    assert set(first.state_dict()) == {"omega"}
    assert not torch.equal(first.omega, second.omega)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.omega, second.omega)
    assert torch.equal(copy.deepcopy(first).omega, first.omega)


def test_heads_have_omegas_of_their_own_or_share_one():
    each = FavorAttention(8, 16, num_heads=2).omega
    assert each.shape == (2, 16, 8)
    assert not torch.equal(each[0], each[1])
    shared = FavorAttention(8, 16).omega
    assert torch.equal(shared, torch.from_numpy(protperf.draw_projection(16, 8)).float())


def test_redraw_is_seeded_and_in_place():
    module, twin = FavorAttention(8, 16, seed=3), FavorAttention(8, 16, seed=3)
    start, storage = module.omega.clone(), module.omega.data_ptr()
    module.redraw(1)
    assert not torch.equal(module.omega, start)
    assert module.omega.data_ptr() == storage
    module.redraw(7)
    twin.redraw(7)
    assert torch.equal(module.omega, twin.omega)
    module.redraw(0)
    assert torch.equal(module.omega, start)


@pytest.mark.parametrize("mode", [True, False])
def test_forward_never_redraws(mode):
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32)
    module = FavorAttention(8, 16).train(mode)
    start = module.omega.clone()
    outs = [module(q, k, v) for _ in range(5)]
    assert torch.equal(module.omega, start)
    assert all(same_bits(out, outs[0]) for out in outs)


def test_redraw_keeps_the_type():
    module = FavorAttention(8, 16).double()
    module.redraw(2)
    assert module.omega.dtype == torch.float64


def test_redraw_between_forward_and_backward_is_noticed():
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32, requires_grad=True)
    module = FavorAttention(8, 16)
    out = module(q, k, v).sum()
    module.redraw(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_compiles_into_one_graph():
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32)
    module = FavorAttention(8, 16, causal=True)
    assert same_bits(torch.compile(module, fullgraph=True, backend="aot_eager")(q, k, v), module(q, k, v))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 0}, "head_dim"),
        ({"head_dim": 8, "num_features": 0}, "num_features"),
        ({"head_dim": 8, "num_heads": 0}, "num_heads"),
        ({"head_dim": 8, "feature_map": "cosine"}, "cosine"),
        ({"head_dim": 8, "seed": -1}, "seed"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FavorAttention(**arguments)
