"""The maps that differ from those of `attention_inputs.MAPS` by their function or parameters alone."""

import itertools
import math

import numpy as np
import pytest
import torch
from attention_inputs import MAPS, arrays, same_bits, tensors, worst
from torch.utils import _pytree as pytree

import protperf
from protperf.torch import favor_attention, favor_attention_with_state, reference

OTHERS = [name for name in protperf.feature_maps() if name not in MAPS]
FUNCTIONS = ["abs", "cos", "gelu", "identity", "relu2", "sigmoid", "square", "tanh"]
# Added to features that may be negative, so that no denominator is near 0.
EPSILON = {"cos": 1.5, "gelu": 0.5, "identity": 6.0, "tanh": 1.5}


@pytest.fixture(params=["native", "chunked"])
def form(request, monkeypatch):
    monkeypatch.setenv("PROTPERF_TORCH_FORM", request.param)


def test_every_map_is_here_or_among_the_common_ones():
    assert sorted([*FUNCTIONS, "exp", "fourier", "gaussian"]) == sorted(OTHERS)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", OTHERS)
def test_values_and_gradients_are_those_of_the_oracle(form, feature_map, causal):
    q, k, v, omega = tensors(1, 2, 70, kv_heads=1, d=5, e=3, m=12, scale=0.5, requires_grad=True)
    leaves = (q, k, v, omega.requires_grad_())
    options = {"feature_map": feature_map, "causal": causal, "kernel_epsilon": EPSILON.get(feature_map)}
    found, needed = (f(*leaves, **options) for f in (favor_attention, reference.favor_attention))
    assert worst(found, needed) < 1e-10
    weights = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    grads = (torch.autograd.grad(out, leaves, weights) for out in (found, needed))
    assert all(worst(a, b) < 1e-9 for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("feature_map", FUNCTIONS)
def test_functions_work_without_projection(form, feature_map):
    q, k, v, _ = tensors(1, 2, 20, d=5, e=3)
    options = {"feature_map": feature_map, "kernel_epsilon": EPSILON.get(feature_map)}
    assert worst(*(f(q, k, v, None, **options) for f in (favor_attention, reference.favor_attention))) < 1e-10


@pytest.mark.parametrize("feature_map", OTHERS)
def test_parts_with_a_state_are_the_whole(form, feature_map):
    q, k, v, omega = tensors(1, 1, 20, d=5, e=3, m=12, scale=0.5)
    options = {"feature_map": feature_map, "kernel_epsilon": EPSILON.get(feature_map)}
    whole = favor_attention(q, k, v, omega, causal=True, **options)
    first, state = favor_attention_with_state(*(x[:, :, :13] for x in (q, k, v)), omega, **options)
    last, _ = favor_attention_with_state(*(x[:, :, 13:] for x in (q, k, v)), omega, state, **options)
    assert worst(torch.cat([first, last], 2), whole) < 1e-10


KINDS = {
    "plain": {},
    "causal": {"causal": True},
    "packed": {"cu_seqlens": torch.tensor([0, 1, 3])},
    "padded": {"key_padding_mask": torch.tensor([[False, True, False]])},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("feature_map", OTHERS)
def test_first_and_second_derivatives(feature_map, kind):
    q, k, v, omega = tensors(1, 1, 3, d=2, e=1, m=3, scale=0.5, requires_grad=True)
    options = {"feature_map": feature_map, "kernel_epsilon": EPSILON.get(feature_map), **KINDS[kind]}
    leaves = (q, k, v, omega.requires_grad_())
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda *x: favor_attention(*x, **options), leaves, fast_mode=True)


# `test_derivatives.py` has the two that are not here.
@pytest.mark.parametrize("kind", ["plain", "causal", "packed"])
@pytest.mark.parametrize("feature_map", [*OTHERS, "hyperbolic", "smreg", "elu1", "trigonometric"])
def test_first_and_second_derivatives_through_states_in_and_out(feature_map, kind):
    options = {"feature_map": feature_map, "kernel_epsilon": EPSILON.get(feature_map)}
    num_sequences = 2 if kind == "packed" else 1
    before = tensors(num_sequences, 1, 3, d=2, e=1, m=3, scale=0.5, seed=9)
    state = favor_attention_with_state(*before, **options)[1]
    q, k, v, omega = tensors(1, 1, 3, d=2, e=1, m=3, scale=0.5, requires_grad=True)
    leaves = (q, k, v, omega.requires_grad_(), state[..., 1:].clone().requires_grad_())

    def attention(q, k, v, omega, sums):
        given = torch.cat([state[..., :1], sums], -1)
        out, after = favor_attention_with_state(q, k, v, omega, given, **{"causal": False, **options, **KINDS[kind]})
        return out, after[..., 1:]

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(attention, leaves, fast_mode=True)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.parametrize("feature_map", protperf.feature_maps())
def test_transforms_of_torch_func_are_those_of_the_oracle(feature_map):
    given = tensors(1, 1, 4, d=3, e=2, m=4, scale=0.5)
    tangents = tensors(1, 1, 4, d=3, e=2, m=4, scale=0.5, seed=2)
    options = {"feature_map": feature_map, "causal": True, "kernel_epsilon": EPSILON.get(feature_map)}
    cotangent = torch.linspace(-1, 1, 8, dtype=torch.float64).view(1, 1, 4, 2)
    many = [torch.stack(pair) for pair in zip(given, tangents, strict=True)]
    func, every = torch.func, (0, 1, 2, 3)
    ours, plain = (
        lambda q, k, v, omega, f=f: f(q, k, v, omega, **options) for f in (favor_attention, reference.favor_attention)
    )
    for transform in (
        lambda f: func.grad(lambda *leaves: f(*leaves).square().sum(), argnums=every)(*given),
        lambda f: func.vjp(f, *given)[1](cotangent),
        lambda f: func.jvp(f, given, tangents),
        lambda f: func.jacrev(f, argnums=(1, 3))(*given),
        lambda f: torch.stack([f(*(x[i] for x in many)) for i in range(2)]) if f is plain else func.vmap(f)(*many),
    ):
        found, needed = (pytree.tree_leaves(transform(f)) for f in (ours, plain))
        assert any(x.abs().max() > 1e-4 for x in needed)
        assert all(worst(a, b) < 1e-9 for a, b in zip(found, needed, strict=True))


@pytest.mark.parametrize("feature_map", OTHERS)
def test_later_rows_change_no_bit_of_causal_output(feature_map):
    q, k, v, omega = tensors(1, 2, 70, d=8, dtype=torch.float32)
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, :, 40:] *= 5
    outs = [favor_attention(*x, omega, feature_map=feature_map, causal=True) for x in ((q, k, v), changed)]
    assert same_bits(outs[0][:, :, :40], outs[1][:, :, :40])


@pytest.mark.parametrize("feature_map", ["square", "relu2", "abs"])
@pytest.mark.parametrize("scale", [1e6, 1e30])
def test_squares_of_huge_inputs_stay_in_the_hull(form, feature_map, scale):
    q, k, v, omega = tensors(1, 1, 70, d=8, dtype=torch.float32, scale=scale)
    for causal in (False, True):
        out = favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal)
        assert out.isfinite().all()
        assert out.abs().max() <= v.abs().max() * (1 + 1e-5)


@pytest.mark.parametrize("feature_map", ["gaussian", "fourier"])
def test_the_gaussian_kernel_is_what_the_features_estimate(feature_map):
    q, k, v, _ = tensors(1, 1, 12, d=4, e=3, scale=0.7)
    omega = torch.from_numpy(protperf.draw_projection(20_000, 4, seed=2))
    x, y = q * 4**-0.25, k * 4**-0.25
    weights = (-0.5 * torch.cdist(x, y) ** 2).softmax(-1)
    found = favor_attention(q, k, v, omega, feature_map=feature_map)
    # A few standard errors of 20,000 features, which have a spread of about 1.
    assert worst(found, weights @ v) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("isa", protperf.build_info()["isas"])
def test_every_instruction_set_is_close_to_the_reference(isa, monkeypatch):
    monkeypatch.setenv("PROTPERF_ISA", isa)
    for feature_map, causal in itertools.product(OTHERS, [False, True]):
        for length, d, m in ((1, 1, 1), (70, 5, 12), (130, 17, 65)):
            q, k, v, omega = arrays(1, 2, length, d=d, e=3, m=m, scale=0.5, dtype=np.float32)
            options = {"feature_map": feature_map, "causal": causal, "kernel_epsilon": EPSILON.get(feature_map)}
            needed = protperf.favor_attention(
                *(x.astype(np.float64) for x in (q, k, v)), omega, backend="reference", **options
            )
            for dtype, bound in ((np.float32, 2e-6), (np.float64, 1e-13)):
                found = protperf.favor_attention(*(x.astype(dtype) for x in (q, k, v)), omega, **options)
                assert worst(found, needed) < bound, (feature_map, causal, d)
