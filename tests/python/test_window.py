"""Exact attention within a window against a mask written out, and modules with heads of both kinds."""

import pytest
import torch
from attention_inputs import same_bits, tensors, worst
from torch.utils._python_dispatch import TorchDispatchMode

import protperf
from protperf.torch import favor_attention, softmax_attention
from protperf.torch.nn import (
    ExactAttention,
    FavorAttention,
    FittedAttention,
    MultiheadAttention,
    WindowedHeads,
    attention_core,
    scaled_dot_product_attention,
)


def written_out(q, k, v, window, causal=False, borders=None, padding=None):
    """Attention by a mask of all pairs, and softmax over it."""
    group, offset = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    rows, cols = torch.arange(q.shape[2])[:, None] + offset, torch.arange(k.shape[2])[None]
    seen = (rows - cols).abs() <= window
    if causal:
        seen = seen & (cols <= rows)
    if borders is not None:
        segment = torch.tensor([sum(i >= border for border in borders) for i in range(k.shape[2])])
        seen = seen & (segment[:, None] == segment[None])
    seen = seen.expand(q.shape[0], 1, -1, -1)
    if padding is not None:
        seen = seen & ~padding[:, None, None, :]
    scores = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(~seen, -torch.inf)
    return torch.nan_to_num(scores.softmax(-1)) @ v


SHAPES = [(1, 0), (1, 3), (64, 1), (65, 0), (127, 5), (130, 70), (200, 64), (200, 199), (20, 500)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "window"), SHAPES, ids=lambda n: str(n))
def test_a_window_is_a_band_of_the_mask_forward_and_backward(length, window, causal):
    q, k, v, _ = tensors(2, 4, length, kv_heads=2, e=3, requires_grad=True)
    found = softmax_attention(q, k, v, causal=causal, window=window)
    needed = written_out(q, k, v, window, causal)
    assert worst(found, needed) < 1e-12
    weight = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(1))
    gradients = (torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (found, needed))
    assert all(worst(a, b) < 1e-12 for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_windows_end_at_the_borders_of_packed_sequences_and_leave_padding_out(causal):
    borders = torch.tensor([0, 3, 3, 70, 150, 151])
    q, k, v, _ = tensors(1, 2, 151)
    found = softmax_attention(q, k, v, causal=causal, window=9, cu_seqlens=borders)
    assert worst(found, written_out(q, k, v, 9, causal, borders.tolist())) < 1e-12
    q, k, v, _ = tensors(2, 2, 151)
    padding = torch.arange(151).expand(2, -1) >= torch.tensor([[100], [151]])
    padding[1, :20] = True
    needed = written_out(q, k, v, 9, causal, padding=padding)
    hidden = padding[:, None, :, None]
    k, v = k.masked_fill(hidden, torch.nan), v.masked_fill(hidden, torch.inf)
    found = softmax_attention(q, k, v, causal=causal, window=9, key_padding_mask=padding)
    assert worst(found, needed) < 1e-12
    assert (found[0, :, 130:] == 0).all()


def test_later_rows_change_no_bit_and_what_is_not_finite_reaches_the_window_alone():
    q, k, v, _ = tensors(1, 2, 200, dtype=torch.float32)
    before = softmax_attention(q, k, v, causal=True, window=10)
    later = [torch.cat([x[:, :, :120], 30 * x[:, :, 120:].flip(2)], 2) for x in (q, k, v)]
    assert same_bits(softmax_attention(*later, causal=True, window=10)[:, :, :120], before[:, :, :120])
    k[0, 0, 100] = torch.nan
    out = softmax_attention(q, k, v, window=10)
    assert out[0, 0].isnan().any(-1).nonzero().flatten().tolist() == list(range(90, 111))
    assert out[0, 1].isfinite().all()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = [x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, torch.Tensor)]
        self.found = max([getattr(self, "found", 0), *made])
        return out


def test_memory_grows_with_the_length_and_not_with_its_square():
    def largest(length):
        q, k, v, _ = tensors(1, 1, length, dtype=torch.float32, requires_grad=True)
        with Largest() as mode:
            softmax_attention(q, k, v, causal=True, window=32).sum().backward()
        return mode.found

    assert largest(4096) == 4 * largest(1024) < 4096 * 4096 / 16


def test_a_window_compiles_into_one_graph_for_any_length():
    compiled = torch.compile(softmax_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (90, 200):
        q, k, v, _ = tensors(1, 2, length, dtype=torch.float32, requires_grad=True)
        needed, found = (f(q, k, v, causal=True, window=7) for f in (softmax_attention, compiled))
        assert worst(found, needed) < 1e-6
        grads = (torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (found, needed))
        assert all(worst(a, b) < 1e-5 for a, b in zip(*grads, strict=True))


# -- Modules


def mixed(causal=True, feature_map="positive", num_window_heads=2, window=6):
    options = {"feature_map": feature_map, "num_features": 16, "num_window_heads": num_window_heads}
    return attention_core(8, 4, window=window, causal=causal, **options)


@pytest.mark.parametrize("causal", [False, True])
def test_heads_of_both_kinds_are_each_what_they_would_be_alone(causal):
    core = mixed(causal)
    assert isinstance(core, WindowedHeads)
    q, k, v, _ = tensors(1, 4, 90, dtype=torch.float32)
    borders = torch.tensor([0, 40, 90])
    out = core(q, k, v, cu_seqlens=borders)
    options = {"causal": causal, "cu_seqlens": borders}
    far = favor_attention(q[:, :2], k[:, :2], v[:, :2], core.core.omega, **options)
    assert same_bits(out[:, :2], far)
    assert worst(out[:, 2:], written_out(q[:, 2:], k[:, 2:], v[:, 2:], 6, causal, [0, 40, 90])) < 1e-5
    assert isinstance(mixed(num_window_heads=4), ExactAttention)
    assert isinstance(mixed(num_window_heads=0), FavorAttention)


def test_heads_of_both_kinds_compile_and_export_for_any_length():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    core = mixed()
    torch._dynamo.reset()
    compiled = torch.compile(core, fullgraph=True, dynamic=True, backend=backend)
    q, k, v, _ = tensors(1, 4, 90, kv_heads=2, dtype=torch.float32)
    shapes = {name: {2: torch.export.Dim.DYNAMIC} for name in "qkv"}
    exported = torch.export.export(core, (q, k, v), dynamic_shapes=shapes).module()
    for length in (90, 12, 64, 65, 200):
        q, k, v, _ = tensors(1, 4, length, kv_heads=2, dtype=torch.float32, requires_grad=True)
        needed, *found = (f(q, k, v) for f in (core, compiled, exported))
        grads = torch.autograd.grad(needed.square().sum(), (q, k, v))
        for out in found:
            assert worst(out, needed) < 1e-6, length
            ours = torch.autograd.grad(out.square().sum(), (q, k, v))
            assert all(worst(a, b) < 1e-5 for a, b in zip(ours, grads, strict=True)), length
    assert len(graphs) == 1


def test_grouped_queries_share_keys_within_their_kind():
    q, k, v, _ = tensors(2, 4, 50, kv_heads=2, dtype=torch.float32)
    core = mixed()
    repeated = core(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    assert worst(core(q, k, v), repeated) < 1e-6
    with pytest.raises(protperf.Error, match="k has 1 heads; 2 of 4 heads are not a whole number of them"):
        core(q, k[:, :1], v[:, :1])


def test_parts_with_a_state_are_the_whole_in_memory_that_does_not_grow():
    core = mixed(window=6)
    q, k, v, _ = tensors(2, 4, 40, kv_heads=2, dtype=torch.float32)
    padding = torch.arange(40).expand(2, -1) < torch.tensor([[0], [13]])
    whole = core(q, k, v, key_padding_mask=padding)
    state, parts = None, []
    for low, high in ((0, 3), (3, 20), (20, 21), (21, 21), (21, 22), (22, 40)):
        part = (x[:, :, low:high] for x in (q, k, v))
        out, state = core.with_state(*part, state, key_padding_mask=padding[:, low:high])
        parts.append(out)
        assert state.keys.shape[2] == min(high, 6)
    assert worst(torch.cat(parts, 2), whole) < 1e-5
    with pytest.raises(protperf.Error, match="causal=True"):
        core.with_state(q, k, v, causal=False)


def test_whole_layers_take_heads_with_a_window():
    layer = MultiheadAttention(32, 4, batch_first=True, num_window_heads=2, window=4, num_features=16)
    x = torch.randn(2, 30, 32, generator=torch.Generator().manual_seed(0))
    out, weights = layer(x, x, x, need_weights=True, average_attn_weights=False)
    far = (torch.arange(30)[:, None] - torch.arange(30)).abs() > 4
    assert (weights[:, 2:, far] == 0).all()
    assert (weights[:, :2] > 0).all()
    assert worst(weights.sum(-1), torch.ones(2, 4, 30)) < 1e-5
    out.sum().backward()
    assert layer.in_proj_weight.grad.isfinite().all()
    # Every layer draws directions of its own for the heads that need them.
    assert layer.core.core.omega.shape == (2, 16, 8)


def test_fitted_maps_observe_the_heads_that_they_compute():
    core = mixed(feature_map="saderf")
    q, k, v, _ = tensors(1, 4, 30, dtype=torch.float32)
    core.observe(q, k)
    alone = FittedAttention(8, 16, num_heads=2, feature_map="saderf", causal=True)
    alone.observe(q[:, :2], k[:, :2])
    assert same_bits(core(q, k, v)[:, :2], alone(q[:, :2], k[:, :2], v[:, :2]))


def test_a_causal_core_is_causal_where_softmax_is_exact_too():
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32)
    needed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    core = attention_core(8, 2, feature_map="exact", causal=True)
    assert worst(core(q, k, v), needed) < 1e-6
    assert worst(scaled_dot_product_attention(q, k, v, core=core), needed) < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: softmax_attention(q, q, q, window=-1), "window is -1"),
        (lambda q: softmax_attention(q, q, q, window=1.5), "window"),
        (lambda q: attention_core(8, 2, num_window_heads=3), "num_window_heads is 3 of 2 heads"),
        (lambda q: attention_core(8, 2, num_window_heads=1, window=-2), "window is -2"),
    ],
    ids=range(4),
)
def test_windows_that_cannot_be_are_refused(call, message):
    with pytest.raises(protperf.Error, match=message):
        call(torch.zeros(1, 2, 5, 8))


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (1, 2, 0, 0), (1, 2, 5, 0)])
def test_empty_tensors_have_empty_answers(shape):
    b, h, length, kv_len = shape
    q, k = torch.zeros(b, h, length, 8, requires_grad=True), torch.zeros(b, h, kv_len, 8)
    out = softmax_attention(q, k, k, window=2)
    out.sum().backward()
    assert out.shape == q.shape
    assert (out == 0).all()
