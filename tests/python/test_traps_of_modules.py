"""What other modules do that nobody asked for, or leave out without a word; `docs/traps.md` lists whose."""

import copy
import re

import pytest
import torch
from attention_inputs import same_bits
from test_architecture import ROOT, package_files
from traps import D, directions, distance, estimate, normal

import protperf
import protperf.torch
from protperf.torch import favor_attention
from protperf.torch.nn import FavorAttention, MultiheadAttention, attention_core, scaled_dot_product_attention
from protperf.torch.seeing import attention_map


def test_trap_padding_and_dropout_are_ignored():
    q, k, v = normal(batch=2, length=20)
    core, padding = FavorAttention(D), torch.arange(20).expand(2, -1) >= 15
    assert distance(core(q, k, v, key_padding_mask=padding), core(q, k, v)) > 0.05
    x = torch.zeros(2, 20, D)
    refused = (
        lambda: MultiheadAttention(D, 2, dropout=0.9),
        lambda: MultiheadAttention(D, 2, batch_first=True)(x, x, x, attn_mask=torch.full((20, 20), -1e9)),
        lambda: scaled_dot_product_attention(q, k, v, dropout_p=0.9, core=core),
        lambda: scaled_dot_product_attention(q, k, v, attn_mask=torch.full((20, 20), -1e9), core=core),
    )
    for call in refused:
        with pytest.raises(protperf.Error, match=r"dropout is 0.9|not the causal mask"):
            call()


def test_trap_directions_are_seeded_by_the_queries():
    q, k, v = normal(0.5)
    core = FavorAttention(D, causal=True)
    before, omega = core(q, k, v), core.omega.clone()
    other = torch.cat([q[:, :, :-1], 1e6 * q[:, :, -1:]], 2)
    assert same_bits(core(other, k, v)[:, :, :-1], before[:, :, :-1])
    assert torch.equal(core.omega, omega)


@pytest.mark.parametrize("training", [False, True])
def test_trap_directions_are_drawn_anew_in_every_call(training):
    q, k, v = normal()
    core = FavorAttention(D).train(training)
    memory = core.omega.data_ptr()
    assert same_bits(core(q, k, v), core(q, k, v))
    core.redraw(1)
    assert core.omega.data_ptr() == memory


def test_trap_directions_are_not_in_the_checkpoint():
    saved, loaded = FavorAttention(D, seed=1), FavorAttention(D, seed=2)
    saved.redraw(5)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.omega, saved.omega)
    loaded.redraw(6)
    saved.redraw(6)
    assert torch.equal(loaded.omega, saved.omega)


def test_trap_queries_and_keys_get_directions_of_their_own():
    q, k, v = normal(0.5)
    core = FavorAttention(D)
    assert distance(core(q, k, v), estimate(q, k, v, core.omega.double())) < 1e-5


def test_trap_a_compiler_is_needed_to_install():
    for path in (
        ROOT / "pyproject.toml",
        ROOT / "Cargo.toml",
        *ROOT.glob("rust/*/Cargo.toml"),
        *ROOT.glob("rust/*/build.rs"),
    ):
        assert not re.search(r"nvcc|CUDA_HOME|CUDAExtension|triton", path.read_text(encoding="utf-8")), path


def test_trap_a_width_of_heads_has_to_divide_another_width():
    q, k, v = normal(heads=5, width=24)
    assert attention_core(24, 5, num_features=7)(q, k, v).shape == q.shape


def test_trap_public_names_that_fail_when_they_are_used():
    for module in (protperf, protperf.torch, protperf.torch.nn, protperf.torch.seeing, protperf.torch.regime):
        for name in module.__all__:
            assert getattr(module, name).__doc__, f"{module.__name__}.{name}"


def test_trap_a_module_of_the_standard_library_that_is_gone():
    gone = re.compile(r"^\s*(import|from)\s+(distutils|imp|asyncore|pkg_resources)\b", re.MULTILINE)
    assert gone.search("    from distutils import version")
    assert not [path for path in package_files() if gone.search(path.read_text(encoding="utf-8"))]


def test_trap_strides_and_types_are_taken_for_those_of_a_plain_tensor():
    q, k, v = normal(heads=2, length=30)
    omega = directions()
    gaps = [torch.stack([x, x + 9], -1)[..., 0] for x in (q, k, v)]
    assert not gaps[0].is_contiguous()
    assert same_bits(favor_attention(*gaps, omega), favor_attention(q, k, v, omega))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert favor_attention(*(x.to(dtype) for x in (q, k, v)), omega).dtype == dtype
    with pytest.raises(protperf.Error, match="one type"):
        favor_attention(q.double(), k, v, omega)


@pytest.mark.parametrize("feature_map", ["positive", "relu", "exact"])
def test_trap_there_is_no_second_derivative(feature_map):
    core = attention_core(3, 2, feature_map=feature_map, num_features=4, causal=True).double()
    q, k, v = (x.requires_grad_() for x in normal(0.5, heads=2, length=4, width=3, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(core, (q, k, v), fast_mode=True)
    # A penalty on the norm of a gradient, as it is written in training.
    (first,) = torch.autograd.grad(core(q, k, v).square().sum(), q, create_graph=True)
    second = torch.autograd.grad(first.square().sum(), (q, k, v))
    assert all(x.abs().max() > 1e-4 for x in second)


def test_trap_a_cpu_can_import_and_not_compute_and_the_compiler_is_turned_off():
    q, k, v = normal(0.5, length=20)
    core = FavorAttention(D, 16, causal=True)
    assert q.device.type == "cpu"
    assert distance(core(q, k, v), estimate(q, k, v, core.omega.double(), causal=True)) < 1e-5
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    # One graph of the module: what is turned off for the compiler would cut it in two, which `fullgraph` refuses.
    compiled = torch.compile(core, fullgraph=True, backend=backend)
    assert same_bits(compiled(q, k, v), core(q, k, v))
    assert len(graphs) == 1
    assert any("protperf.favor" in str(node.target) for node in graphs[0].graph.nodes)
    # A kernel in a language that a CPU has no compiler for could not compute there.
    assert not [path for path in package_files() if "import triton" in path.read_text(encoding="utf-8")]


def test_trap_a_copy_of_a_module_forgets_its_draw():
    core = FavorAttention(D, num_heads=2)
    core.redraw(3)
    other = copy.deepcopy(core)
    assert torch.equal(other.omega, core.omega)
    other.redraw(4)
    core.redraw(4)
    assert torch.equal(other.omega, core.omega)


@pytest.mark.parametrize(("name", "better"), [("trigonometric", "positive"), ("fourier", "gaussian")])
def test_trap_weights_of_sines_and_cosines_are_negative_without_a_word(name, better):
    q, k, _ = normal(0.5, length=20, dtype=torch.float64)
    with pytest.warns(UserWarning, match=f"{name}.*may be negative.*{better}"):
        core = attention_core(D, 1, feature_map=name, num_features=32)
    assert attention_map(core.double(), q, k).min() < 0
    assert attention_map(attention_core(D, 1, feature_map=better, num_features=32).double(), q, k).min() > 0
