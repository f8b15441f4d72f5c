"""Backends by name in the functions of `protperf.torch`: output, gradients, states, compilation, what is refused."""

import pytest
import torch
from attention_inputs import same_bits, tensors, worst

import protperf
from protperf import LogLinear, errors
from protperf.torch import checks, favor_attention, favor_attention_with_state, nn

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")


def results(backend, *, log_linear=False, causal=True):
    """Output, state and the gradients of q, k, v and the map's directions; in float32, so that bits differ."""
    q, k, v, omega = tensors(1, 2, 200, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in (q, k, v, omega)]
    directions, options = (None, {"feature_map": LogLinear(omega)}) if log_linear else (omega, {})
    options |= {"causal": causal, "backend": backend}
    out = favor_attention(q, k, v, directions, **options)
    with_state, state = favor_attention_with_state(q, k, v, directions, **options)
    gradients = torch.autograd.grad((out + with_state).square().sum() + state[..., 1:].sum(), leaves)
    return [out, with_state, state, *gradients]


@pytest.mark.parametrize("log_linear", [False, True])
def test_a_name_chooses_what_computes_the_output_the_state_and_every_gradient(log_linear):
    auto, fast, plain = (results(name, log_linear=log_linear) for name in ("auto", "cpu", "reference"))
    assert all(same_bits(a, b) for a, b in zip(auto, fast, strict=True))
    for a, b in zip(fast, plain, strict=True):
        assert 0 < worst(a, b) < 1e-4 * max(1.0, b.abs().max().item())


@pytest.mark.parametrize("backend", [name for name in protperf.backends() if name != "wgpu"])
def test_a_name_means_in_torch_what_it_means_in_numpy(backend):
    q, k, v, omega = tensors(1, 2, 70, dtype=torch.float32)
    for causal in (False, True):
        found = favor_attention(q, k, v, omega, causal=causal, backend=backend)
        needed = protperf.favor_attention(*(x.numpy() for x in (q, k, v, omega)), causal=causal, backend=backend)
        assert same_bits(found, needed)


def test_a_named_backend_compiles_into_one_graph_with_its_own_bits():
    q, k, v, omega = tensors(1, 2, 70, dtype=torch.float32)
    compiled = torch.compile(favor_attention, fullgraph=True, backend="aot_eager")
    eager = {name: favor_attention(q, k, v, omega, backend=name) for name in ("cpu", "reference")}
    for name, needed in eager.items():
        assert same_bits(compiled(q, k, v, omega, backend=name), needed)
    assert worst(*eager.values()) > 0


def test_a_name_is_stronger_than_the_environment(monkeypatch):
    q, k, v, omega = tensors(1, 2, 200, dtype=torch.float32)
    native = favor_attention(q, k, v, omega, backend="cpu")
    monkeypatch.setenv("PROTPERF_TORCH_FORM", "chunked")
    assert same_bits(favor_attention(q, k, v, omega, backend="cpu"), native)
    assert not same_bits(favor_attention(q, k, v, omega), native)


def test_a_module_computes_with_the_backend_that_it_was_given():
    q, k, v, _ = tensors(1, 2, 200, dtype=torch.float32)
    fast, plain = (nn.FavorAttention(8, 16, backend=name) for name in ("cpu", "reference"))
    assert 0 < worst(fast(q, k, v), plain(q, k, v)) < 1e-4
    assert 0 < worst(fast.with_state(q, k, v)[1], plain.with_state(q, k, v)[1]) < 1e-3
    assert "backend='reference'" in repr(plain)
    with pytest.raises(errors.ConfigError, match="backend 'gpu' is unknown"):
        nn.FavorAttention(8, backend="gpu")


def test_gradients_of_gradients_are_the_same_for_every_name():
    q, k, v, omega = tensors(1, 1, 5, d=3, e=2, m=4)

    def second(backend):
        x = q.clone().requires_grad_()
        (first,) = torch.autograd.grad(favor_attention(x, k, v, omega, backend=backend).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    assert 0 <= worst(second("auto"), second("reference")) < 1e-12


@pytest.mark.parametrize("function", [favor_attention, favor_attention_with_state])
def test_a_name_is_refused_where_nothing_computes_with_it(function):
    q, k, v, omega = tensors(1, 1, 5)
    for name, kind in (("gpu", errors.ConfigError), ("CPU", errors.ConfigError), (None, errors.DtypeError)):
        with pytest.raises(kind, match="backend"):
            function(q, k, v, omega, backend=name)
        with pytest.raises(kind, match="backend"):
            function(q, k, v, None, feature_map=LogLinear(omega), backend=name)
    for transform in (torch.func.grad, lambda f: lambda x: torch.func.jvp(f, (x,), (x,))):
        with pytest.raises(errors.ConfigError, match=r"backend 'cpu' has no rule for torch\.func"):
            transform(lambda x: function(x, k, v, omega, backend="cpu")[0].sum())(q)


def test_a_name_is_refused_on_other_devices_and_auto_is_not():
    cuda = torch.device("cuda")
    assert checks.check_backend("auto", cuda) == "auto"
    with pytest.raises(errors.DeviceError, match="backend 'cpu' takes tensors on a CPU but q is on cuda"):
        checks.check_backend("cpu", cuda)
    q, k, v, omega = (x.to("meta") for x in tensors(1, 1, 5))
    assert favor_attention(q, k, v, omega, backend="reference").shape == (1, 1, 5, 8)
