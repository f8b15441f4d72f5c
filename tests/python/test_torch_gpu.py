"""`backend="wgpu"` for torch tensors: output, states and gradients against the reference, and what is refused."""

import pytest
import torch
from attention_inputs import tensors, worst

import protperf
from protperf import LogLinear, errors
from protperf.torch import favor_attention, favor_attention_with_state, nn

pytestmark = [
    pytest.mark.skipif("wgpu" not in protperf.backends(), reason="built without the feature wgpu"),
    pytest.mark.usefixtures("gpu_device"),
]
# Sums of features of either sign may nearly vanish, and every digit of their quotient is then noise.
SIGNED = ("identity", "tanh", "gelu", "cos")
STEADY = [name for name in protperf.feature_maps() if name not in SIGNED]


def gradients(function, backend, q, k, v, omega, **options):
    """Outputs and gradients of q, k, v and omega, of made-up cotangents."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v, omega)]
    outputs = function(*leaves, backend=backend, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = outputs[0].square().sum() + sum((x[..., 1:] * 0.1).tanh().sum() for x in outputs[1:])
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def assert_near(found, needed):
    for a, b in zip(found, needed, strict=True):
        assert worst(a, b) < 2e-4 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("feature_map", STEADY)
def test_outputs_and_gradients_are_those_of_the_reference(feature_map):
    q, k, v, omega = tensors(2, 4, 19, kv_heads=2, scale=0.5, dtype=torch.float32)
    padding = torch.arange(38).reshape(2, 19) % 5 == 4
    for options in ({"causal": True, "key_padding_mask": padding}, {"causal": False}):
        found, needed = (
            gradients(favor_attention, name, q, k, v, omega, feature_map=feature_map, **options)
            for name in ("wgpu", "reference")
        )
        assert_near(found, needed)


@pytest.mark.parametrize("feature_map", SIGNED)
def test_maps_of_either_sign_are_those_of_the_reference_where_sums_do_not_vanish(feature_map):
    q, k, v, omega = tensors(1, 2, 19, scale=0.5, dtype=torch.float32)
    # Features shifted far enough that all of them are positive.
    options = {"feature_map": feature_map, "kernel_epsilon": 8.0}
    found, needed = (gradients(favor_attention, name, q, k, v, omega, **options) for name in ("wgpu", "reference"))
    assert_near(found, needed)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_and_states_are_those_of_the_reference(causal):
    q, k, v, omega = tensors(1, 2, 90, scale=0.5, dtype=torch.float32)
    borders = torch.tensor([0, 3, 3, 90])
    for function in (favor_attention, favor_attention_with_state):
        options = {"causal": causal, "cu_seqlens": borders, "feature_map": "relu"}
        found, needed = (gradients(function, name, q, k, v, omega, **options) for name in ("wgpu", "reference"))
        assert_near(found, needed)


def test_two_halves_through_a_state_are_the_whole():
    q, k, v, omega = tensors(1, 2, 80, scale=0.5, dtype=torch.float32)
    first, state = favor_attention_with_state(q[:, :, :33], k[:, :, :33], v[:, :, :33], omega, backend="wgpu")
    second, _ = favor_attention_with_state(q[:, :, 33:], k[:, :, 33:], v[:, :, 33:], omega, state, backend="wgpu")
    whole = favor_attention(q, k, v, omega, causal=True, backend="wgpu")
    assert worst(torch.cat([first, second], 2), whole) < 1e-5


def test_a_learnt_map_and_a_module_compute_and_learn_on_the_gpu():
    q, k, v, omega = tensors(1, 2, 20, scale=0.5, dtype=torch.float32)
    losses = {}
    for name in ("wgpu", "reference"):
        directions = omega.float().requires_grad_()
        out = favor_attention(q, k, v, None, feature_map=LogLinear(directions), backend=name)
        losses[name] = [out, *torch.autograd.grad(out.square().sum(), directions)]
    assert_near(losses["wgpu"], losses["reference"])
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    module = nn.FavorAttention(8, 16, causal=True, backend="wgpu")
    module(q, k, v).sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.abs().max() > 0 for x in (q, k, v))


def test_gradients_of_gradients_are_those_of_the_chunked_form():
    q, k, v, omega = tensors(1, 1, 5, d=3, e=2, m=4, dtype=torch.float32)

    def second(backend):
        x = q.clone().requires_grad_()
        (first,) = torch.autograd.grad(favor_attention(x, k, v, omega, backend=backend).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    assert worst(second("wgpu"), second("reference")) < 1e-4


def test_bfloat16_and_autocast_are_computed_in_float32():
    q, k, v, omega = tensors(1, 2, 20, scale=0.5, dtype=torch.bfloat16)
    found = favor_attention(q, k, v, omega, backend="wgpu")
    assert found.dtype == torch.bfloat16
    needed = favor_attention(q, k, v, omega, backend="reference")
    assert worst(found.float(), needed.float()) < 2e-2
    with torch.autocast("cpu"):
        assert favor_attention(q.float(), k.float(), v.float(), omega, backend="wgpu").dtype == torch.bfloat16


@pytest.mark.parametrize("function", [favor_attention, favor_attention_with_state])
def test_float64_is_refused_and_the_message_names_the_remedy(function):
    with pytest.raises(errors.DtypeError, match=r'"wgpu" computes on float32.*not on float64.*backend="cpu"'):
        function(*tensors(1, 1, 5), backend="wgpu")


def test_transforms_of_torch_func_are_refused_by_name():
    q, k, v, omega = tensors(1, 1, 5, dtype=torch.float32)
    with pytest.raises(errors.ConfigError, match=r"backend 'wgpu' has no rule for torch\.func.*say 'auto'"):
        torch.func.grad(lambda x: favor_attention(x, k, v, omega, backend="wgpu").sum())(q)
