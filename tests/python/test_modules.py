"""Every attention module through every mode of torch: derivatives, compilation, export, autocast, states."""

import pytest
import torch
from attention_inputs import same_bits, tensors, worst

from protperf.torch import reference
from protperf.torch.nn import (
    FavorAttention,
    FittedAttention,
    LearnedAttention,
    MultiheadAttention,
    QKNorm,
    attention_core,
)

# torch's own, when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

CORES = {
    "favor": {},
    "without a projection": {"feature_map": "elu1", "projection": False, "kernel_epsilon": 0.1},
    "fitted": {"feature_map": "saderf"},
    "fitted, rotated": {"feature_map": "aderf"},
    "learned": {"feature_map": "learned"},
    "windowed": {"num_window_heads": 2, "window": 1},
    "exact": {"feature_map": "exact"},
}
WITH_STATE = [name for name in CORES if name != "exact"]


def made(name, head_dim=3, heads=4, num_features=4, dtype=torch.float64):
    """A module with parameters of its own for each head, fitted where it can be."""
    core = attention_core(head_dim, heads, num_features=num_features, causal=True, **CORES[name]).to(dtype)
    if name.startswith("fitted"):
        core.observe(*tensors(2, heads, 30, d=head_dim, scale=0.7, seed=5)[:2])
    return core


def call_of(core, options):
    """The module as a function of tensors and of its parameters, and the parameters."""
    names, parameters = zip(*core.named_parameters(), strict=True) if list(core.parameters()) else ((), ())

    def call(q, k, v, *values):
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(core, named, (q, k, v), options)

    return call, parameters


SHAPES = {
    "grouped": ({"kv_heads": 2}, {}),
    "cross": ({"kv_len": 3, "kv_heads": 2}, {"causal": False}),
    "packed": ({}, {"cu_seqlens": torch.tensor([0, 1, 4])}),
    "padded": ({}, {"key_padding_mask": torch.tensor([[False, True, False, False]])}),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("name", CORES)
def test_first_and_second_gradients(name, kind):
    shapes, options = SHAPES[kind]
    # Values as wide as keys: torch's fused kernels, which have no second derivatives, take no others.
    leaves = tensors(1, 4, 4, d=3, e=3, scale=0.7, requires_grad=True, **shapes)[:3]
    call, parameters = call_of(made(name), options)
    assert (name == "learned") == bool(parameters)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(call, (*leaves, *parameters), fast_mode=True)


@pytest.mark.parametrize("name", ["favor", "fitted, rotated", "learned", "windowed"])
def test_gradients_of_grouped_heads_entry_by_entry(name):
    leaves = tensors(1, 4, 3, kv_heads=2, d=2, e=1, scale=0.7, requires_grad=True)[:3]
    call, parameters = call_of(made(name, head_dim=2, num_features=2), {})
    assert torch.autograd.gradcheck(call, (*leaves, *parameters))


@pytest.mark.parametrize("heads", [None, 4])
def test_an_omega_per_head_is_used_by_its_head(heads):
    q, k, v, _ = tensors(2, 4, 6, kv_len=5, kv_heads=2, d=3, e=2)
    core = FavorAttention(3, 7, num_heads=heads).double()
    assert worst(core(q, k, v), reference.favor_attention(q, k, v, core.omega)) < 1e-12


# -- Compiled and exported


@pytest.mark.parametrize("name", ["fitted, rotated", "learned", "without a projection"])
def test_modules_compile_into_one_graph_with_gradients(name):
    core = made(name, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(core, fullgraph=True, backend="aot_eager")
    leaves = (*tensors(1, 4, 9, kv_heads=2, d=3, dtype=torch.float32, requires_grad=True)[:3], *core.parameters())
    outs = [f(*leaves[:3]) for f in (compiled, core)]
    assert worst(*outs) < 1e-6
    grads = [torch.autograd.grad(out.square().sum(), leaves) for out in outs]
    assert all(worst(a, b) < 1e-5 for a, b in zip(*grads, strict=True))
    assert all(x.abs().max() > 1e-4 for x in grads[1])


def test_multihead_attention_compiles_into_one_graph_with_gradients():
    torch.manual_seed(0)
    layer = MultiheadAttention(16, 4, batch_first=True, num_features=8)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 9, 16, requires_grad=True)
    padding = torch.arange(9).expand(2, -1) >= torch.tensor([[9], [5]])
    outs = [f(x, x, x, key_padding_mask=padding)[0] for f in (compiled, layer)]
    assert worst(*outs) < 1e-6
    grads = [torch.autograd.grad(out.square().sum(), (x, *layer.parameters())) for out in outs]
    assert all(worst(a, b) < 1e-5 for a, b in zip(*grads, strict=True))
    # A mask of numbers, as layers of torch make of every mask, is checked when the graph runs.
    numbers = torch.zeros(2, 9).masked_fill(padding, -torch.inf)
    assert worst(compiled(x, x, x, key_padding_mask=numbers)[0], outs[1]) < 1e-6
    with pytest.raises(RuntimeError, match="key_padding_mask has numbers other than 0 and -inf"):
        compiled(x, x, x, key_padding_mask=numbers + 1)


class WithState(torch.nn.Module):
    """What `torch.export` takes: a module around the method."""

    def __init__(self, core):
        super().__init__()
        self.core = core

    def forward(self, q, k, v, state):
        return self.core.with_state(q, k, v, state)


@pytest.mark.parametrize("name", ["favor", "fitted", "fitted, rotated", "learned"])
def test_modules_and_their_states_export_for_any_length(name):
    core = made(name, dtype=torch.float32)
    q, k, v, _ = tensors(1, 4, 9, kv_heads=2, d=3, dtype=torch.float32)
    any_length = {x: {2: torch.export.Dim.DYNAMIC} for x in "qkv"}
    exported = torch.export.export(core, (q, k, v), dynamic_shapes=any_length).module()
    state = core.with_state(q, k, v)[1].detach()
    shapes = {**any_length, "state": None}
    decoder = torch.export.export(WithState(core), (q, k, v, state), dynamic_shapes=shapes).module()
    for length in (9, 70):
        q, k, v, _ = tensors(1, 4, length, kv_heads=2, d=3, dtype=torch.float32, seed=length)
        assert worst(exported(q, k, v), core(q, k, v)) < 1e-6
        found, needed = decoder(q, k, v, state), core.with_state(q, k, v, state)
        assert worst(found[0], needed[0]) < 1e-6
        assert worst(found[1], needed[1]) < 1e-5


# -- Autocast


@pytest.mark.parametrize("name", WITH_STATE)
def test_under_autocast_inputs_of_mixed_types_are_cast_and_parameters_are_not(name):
    core = made(name, dtype=torch.float32)
    q, k, v, _ = tensors(1, 4, 16, kv_heads=2, d=3, scale=0.5, dtype=torch.float32)
    narrow = [x.bfloat16() for x in (q, k, v)]
    needed = core(*(x.float() for x in narrow))
    with pytest.raises(TypeError, match="one type"):
        core(q, k, narrow[2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = (q, narrow[1], v)
        whole = core(*given)
        first, state = core.with_state(*(x[:, :, :9] for x in given))
        last, after = core.with_state(*(x[:, :, 9:] for x in given), state)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)] + list(core.parameters())
        grads = torch.autograd.grad(core(*leaves[:3]).float().square().sum(), leaves)
    assert whole.dtype == first.dtype == last.dtype == torch.bfloat16
    assert (whole.float() - needed).norm() < 0.02 * needed.norm()
    parts = torch.cat([first, last], 2).float()
    assert (parts - needed).norm() < 0.02 * needed.norm()
    sums = after if isinstance(after, torch.Tensor) else after.favor
    assert sums.dtype == torch.float32
    assert all(g.dtype == x.dtype and g.isfinite().all() for g, x in zip(grads, leaves, strict=True))
    plain = torch.autograd.grad(core(*leaves[:3]).square().sum(), leaves)
    assert all((a - b).norm() < 0.05 * b.norm() for a, b in zip(grads, plain, strict=True))


@pytest.mark.parametrize("kind", [FittedAttention, LearnedAttention])
def test_types_that_differ_are_named_outside_of_autocast(kind):
    q, k, v, _ = tensors(1, 2, 6, d=3, dtype=torch.float32)
    core = kind(3, 4, num_heads=2)
    for given in ((q, k.double(), v), (q, k, v.double())):
        with pytest.raises(TypeError, match="q, k and v must have one type"):
            core(*given)
        with pytest.raises(TypeError, match="q, k and v must have one type"):
            core.with_state(*given)


# -- Norms of queries and keys


def test_the_gradient_of_a_temperature_is_the_numeric_one():
    norm = QKNorm(3, 4, temperature=1.3).double()
    core = made("favor")
    q, k, v, _ = tensors(1, 4, 5, kv_heads=2, d=3, e=2)

    def attention(log_temperature, q, k):
        return core(*torch.func.functional_call(norm, {"log_temperature": log_temperature}, (q, k)), v)

    given = torch.linspace(-0.5, 0.5, 4, dtype=torch.float64).requires_grad_()
    leaves = (given, q.requires_grad_(), k.requires_grad_())
    assert torch.autograd.gradcheck(attention, (given, q.detach(), k.detach()))
    assert torch.autograd.gradcheck(attention, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(attention, leaves, fast_mode=True)
    (found,) = torch.autograd.grad(attention(*leaves).square().sum(), given)
    assert found.abs().min() > 1e-4
    # Rows of zeros have no direction, and their gradient is a number all the same.
    zeros = torch.zeros(1, 4, 5, 3, dtype=torch.float64, requires_grad=True)
    (dq,) = torch.autograd.grad(norm(zeros, k.detach())[0].sum(), zeros)
    assert dq.isfinite().all()
    assert not same_bits(norm(q, k)[0], q)
