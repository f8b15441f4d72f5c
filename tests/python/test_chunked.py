"""The chunked form in plain torch against the native kernels and the oracle: what other devices run, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_inputs import MAPS, same_bits, tensors, worst

from protperf.torch import favor_attention, favor_attention_with_state, merge_states, reference

PROGRAM = Path(__file__).with_name("long_calls.py")
SCALE = {"trigonometric": 0.3}
FORMS = ["plain", "padded", "packed", "heads"]
MAX_MEMORY = 1.3


@pytest.fixture
def chunked(monkeypatch):
    """Operators on a CPU compute as on any other device."""
    monkeypatch.setenv("PROTPERF_TORCH_FORM", "chunked")


def case(form, length, feature_map, causal, dtype=torch.float64):
    """q, k, v, omega and options of a call; not causal and not packed has more keys than queries."""
    kv_len = length if causal or form == "packed" else length + 3
    batch = 1 if form == "packed" else 2
    inputs = tensors(
        batch, 4, length, kv_len, 5, 6, 7, kv_heads=2, scale=SCALE.get(feature_map, 1.0), seed=length, dtype=dtype
    )
    options = {"feature_map": feature_map, "causal": causal}
    if form == "padded":
        options["key_padding_mask"] = torch.rand(2, kv_len, generator=torch.Generator().manual_seed(length)) < 0.3
    if form == "packed":
        options["cu_seqlens"] = torch.tensor([0, 0, length // 3, length // 3, length // 2, length])
    if form == "heads":
        inputs = (*inputs[:3], torch.stack([inputs[3] * x for x in (1.0, 0.9, -1.0, 1.1)]))
    return inputs, options


def gradients(attention, inputs, **options):
    """Output and gradients of a loss whose weights are the same numbers in every type."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = attention(*leaves, **options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", MAPS)
def test_values_and_gradients_match_the_kernels_and_the_oracle(monkeypatch, feature_map, causal, form):
    for length in (1, 2, 16, 33, 300):
        inputs, options = case(form, length, feature_map, causal)
        native = gradients(favor_attention, inputs, **options)
        plain = gradients(reference.favor_attention, inputs, **options)
        monkeypatch.setenv("PROTPERF_TORCH_FORM", "chunked")
        ours = gradients(favor_attention, inputs, **options)
        monkeypatch.delenv("PROTPERF_TORCH_FORM")
        for name, a, b, c in zip(("out", "dq", "dk", "dv", "domega"), ours, native, plain, strict=True):
            bound = 1e-10 * max(1.0, c.abs().max().item())
            assert worst(a, b) < bound, (name, length)
            assert worst(a, c) < bound, (name, length)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", MAPS)
def test_float32_is_as_near_to_float64_as_the_kernels(monkeypatch, feature_map, causal):
    """At most twice as far as the kernels, plus what rounding of inputs and of the result itself can add."""
    scale = 0.5 if feature_map == "trigonometric" else 1.0
    inputs = tensors(1, 2, 600, d=64, e=32, m=128, scale=scale, seed=3)
    single = [x.float() for x in inputs[:3]] + [inputs[3].float()]
    options = {"feature_map": feature_map, "causal": causal}
    native = gradients(favor_attention, single, **options)
    exact = gradients(favor_attention, [x.double() for x in single], **options)
    monkeypatch.setenv("PROTPERF_TORCH_FORM", "chunked")
    ours = gradients(favor_attention, single, **options)

    for name, a, b, c in zip(("out", "dq", "dk", "dv", "domega"), ours, native, exact, strict=True):
        distance, allowed = ((x.double() - c).norm() / c.norm() for x in (a, b))
        assert distance < 2 * allowed + 5e-7, name


@pytest.mark.parametrize(
    "what", ["q x50", "k x20", "rising keys", "falling keys", "x1e6", "x1e38", "x1e-30", "v x1e38"]
)
@pytest.mark.parametrize("feature_map", MAPS)
def test_extreme_inputs_stay_finite_and_inside_the_values(chunked, feature_map, what):
    q, k, v, omega = (x.float() for x in tensors(1, 1, 300, d=32, e=16, m=64, seed=1))
    ramp = torch.linspace(0.05, 1, 300)[:, None]
    change = {
        "q x50": (50.0, 1.0, 1.0),
        "k x20": (1.0, 20.0, 1.0),
        "rising keys": (3.0, 40 * ramp, 1.0),
        "falling keys": (3.0, 40 * ramp.flip(0), 1.0),
        "x1e6": (1e6, 1e6, 1.0),
        "x1e38": (1e38, 1e38, 1.0),
        "x1e-30": (1e-30, 1e-30, 1.0),
        "v x1e38": (1.0, 1.0, 1e38),
    }[what]
    q, k, v = ((x * factor).clamp(-3e38, 3e38).requires_grad_() for x, factor in zip((q, k, v), change, strict=True))
    for causal in (False, True):
        out = favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal)
        grads = torch.autograd.grad(out, (q, k, v), torch.full_like(out, 1e-3 / v.abs().max().item()))
        assert out.isfinite().all()
        assert all(g.isfinite().all() for g in grads)
        if feature_map != "trigonometric":
            room = 1e-5 * v.abs().max()
            low, high = (v.cummin(2)[0], v.cummax(2)[0]) if causal else (v.amin(2, True), v.amax(2, True))
            assert ((out >= low - room) & (out <= high + room)).all()


@pytest.mark.parametrize("feature_map", MAPS)
def test_later_rows_change_no_bit_of_earlier_outputs_and_gradients(chunked, feature_map):
    length = 300
    q, k, v, omega = tensors(1, 2, length, scale=0.7, dtype=torch.float32)
    weight = torch.randn(1, 2, length, 8, generator=torch.Generator().manual_seed(0))

    def earlier(cut, factor):
        leaves = [torch.cat([x[:, :, :cut], x[:, :, cut:] * factor], 2).requires_grad_() for x in (q, k, v)]
        out = favor_attention(*leaves, omega, feature_map=feature_map, causal=True)[:, :, :cut]
        grads = torch.autograd.grad((out * weight[:, :, :cut]).sum(), leaves)
        return [out, *(g[:, :, :cut] for g in grads)]

    for cut in (1, 31, 64, 97, 256, 280, length - 1):
        needed = earlier(cut, 1.0)
        for factor in (2.0, 1000.0, 1e30, torch.nan, torch.inf):
            for name, a, b in zip(("out", "dq", "dk", "dv"), earlier(cut, factor), needed, strict=True):
                assert torch.equal(a, b), (name, cut, factor)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("feature_map", ["positive", "relu", "trigonometric"])
def test_a_row_that_is_not_finite_poisons_what_sees_it_and_its_gradients(chunked, feature_map, where, causal):
    inputs = [x.clone() for x in tensors(2, 2, 40)]
    clean = favor_attention(*inputs, feature_map=feature_map, causal=causal)
    inputs[where][0, 1, 17, 2] = torch.inf
    leaves = [x.requires_grad_() for x in inputs]
    out = favor_attention(*leaves, feature_map=feature_map, causal=causal)
    reached = torch.zeros(2, 2, 40, dtype=torch.bool)
    reached[0, 1, 17 if causal or where == 0 else 0 : 18 if where == 0 else None] = True
    assert out[reached].isnan().all()
    assert torch.equal(out[~reached], clean[~reached])
    dq, dk, dv, domega = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert torch.equal(dq.isnan().all(-1), reached)
    assert dk.isnan().all(-1)[0, 1, : 18 if causal else 40].all()
    assert dv.isnan().all(-1)[0, 1, : 18 if causal else 40].all()
    assert dk[1].isfinite().all()
    assert dk[0, 0].isfinite().all()
    assert domega.isnan().all()
    # A loss that reads none of the outputs that saw it has a finite gradient.
    finite = torch.autograd.grad(
        out := favor_attention(*leaves, feature_map=feature_map, causal=causal),
        leaves,
        ~reached[..., None] * torch.ones_like(out),
    )
    assert all(g.isfinite().all() for g in finite)


@pytest.mark.parametrize("attention", ["chunked", "oracle"])
@pytest.mark.parametrize("feature_map", MAPS)
def test_an_omega_that_is_not_finite_poisons_its_heads(monkeypatch, feature_map, attention):
    monkeypatch.setenv("PROTPERF_TORCH_FORM", "chunked")
    function = favor_attention if attention == "chunked" else reference.favor_attention
    q, k, v, omega = tensors(1, 2, 20, d=4, m=6, requires_grad=True)
    omega = torch.stack([omega, omega])
    omega[1, 3, 2] = torch.nan
    for causal in (False, True):
        out = function(q, k, v, omega, feature_map=feature_map, causal=causal)
        assert out[0, 0].isfinite().all()
        assert out[0, 1].isnan().all()
        if attention == "chunked":
            for grad in torch.autograd.grad(out.sum(), (q, k, v)):
                assert grad[0, 0].isfinite().all()
                assert grad[0, 1].isnan().all()
    omega[:] = torch.inf
    assert function(q, k, v, omega, feature_map=feature_map).isnan().all()


@pytest.mark.parametrize("scale", [6.0, 30.0])
def test_trigonometric_features_are_stable_in_the_oracle(scale):
    inputs = tensors(1, 1, 64, d=16, m=32, scale=scale, dtype=torch.float32 if scale == 6 else torch.float64)
    plain = reference.favor_attention(*inputs, feature_map="trigonometric", causal=True)
    assert plain.isfinite().all()
    ours = favor_attention(*inputs, feature_map="trigonometric", causal=True)
    # Its denominators pass near zero; where they do, nothing is resolved.
    assert (plain - ours).abs().median() < 1e-4


@pytest.mark.parametrize("form", ["plain", "packed"])
@pytest.mark.parametrize("feature_map", MAPS)
def test_states_cross_between_the_kernels_and_the_chunked_form(monkeypatch, feature_map, form):
    inputs, options = case(form, 60, feature_map, True)
    borders = options.get("cu_seqlens")
    q, k, v, omega = inputs
    segments = [(0, 60)] if borders is None else list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))

    def rows(x, low, high):
        return x[:, :, low:high]

    monkeypatch.setenv("PROTPERF_TORCH_FORM", "chunked")
    _, states = favor_attention_with_state(q, k, v, omega, **options)
    more = favor_attention_with_state(q, k, v, omega, states, **options)
    monkeypatch.delenv("PROTPERF_TORCH_FORM")
    for i, (low, high) in enumerate(segments):
        part = [rows(x, low, high) for x in (q, k, v)]
        before = states[i : i + 1] if form == "packed" else states
        out, after = favor_attention_with_state(*part, omega, before, feature_map=feature_map)
        assert worst(out, rows(more[0], low, high)) < 1e-10
        ours = more[1][i : i + 1] if form == "packed" else more[1]
        seen = after[..., :1] > -1e30
        assert torch.equal(seen, ours[..., :1] > -1e30)
        shift = torch.where(seen, ours[..., :1] - after[..., :1], 0.0)
        assert worst(after[..., 1:], ours[..., 1:] * torch.exp2(shift)) <= 1e-10 * after[..., 1:].abs().max()


def test_merging_states_is_differentiable():
    q, k, v, omega = tensors(1, 2, 20, requires_grad=True)
    cut = [(x[:, :, :9], x[:, :, 9:]) for x in (q, k, v)]
    states = [favor_attention_with_state(*(x[i] for x in cut), omega)[1] for i in range(2)]
    read = favor_attention_with_state(q, k[:, :, :0], v[:, :, :0], omega, merge_states(*states))[0]
    merged = torch.autograd.grad(read.sum(), (k, v))
    whole = torch.autograd.grad(favor_attention(q, k, v, omega).sum(), (k, v))
    assert all(worst(a, b) < 1e-12 for a, b in zip(merged, whole, strict=True))


@pytest.mark.parametrize("feature_map", MAPS)
def test_queries_alone_read_a_state_that_grows(feature_map):
    q, k, v, omega = tensors(2, 4, 30, 50, kv_heads=2, scale=SCALE.get(feature_map, 1.0))
    options = {"feature_map": feature_map}
    state = None
    for low, high in ((0, 20), (20, 50)):
        keys = (x[:, :, low:high] for x in (k, v))
        out, state = favor_attention_with_state(q, *keys, omega, state, causal=False, **options)
        whole = favor_attention(q, k[:, :, :high], v[:, :, :high], omega, **options)
        assert worst(out, whole) < 1e-10
        alone, unchanged = favor_attention_with_state(q[:, :, :7], k[:, :, :0], v[:, :, :0], omega, state, **options)
        assert worst(alone, whole[:, :, :7]) < 1e-10
        assert worst(unchanged, state) < 1e-10


def test_many_short_segments_are_walked_side_by_side(chunked):
    """Segments of every length from 0 to 90, in an order of no pattern, equal one call for each."""
    lengths = [(37 * i) % 91 for i in range(91)]
    borders = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v, omega = tensors(1, 2, int(borders[-1]), d=4, e=3, m=5)
    for causal in (False, True):
        packed = favor_attention(q, k, v, omega, causal=causal, cu_seqlens=borders)
        for low, high in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            alone = favor_attention(*(x[:, :, low:high] for x in (q, k, v)), omega, causal=causal)
            assert worst(packed[:, :, low:high], alone) < 1e-12


def test_a_batch_is_each_of_its_entries(chunked):
    q, k, v, omega = tensors(3, 2, 70, scale=0.7, dtype=torch.float32)
    for causal in (False, True):
        whole = favor_attention(q, k, v, omega, causal=causal)
        for b in range(3):
            alone = favor_attention(*(x[b : b + 1] for x in (q, k, v)), omega, causal=causal)
            assert worst(whole[b : b + 1], alone) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(chunked, dtype):
    inputs = tensors(1, 2, 40, dtype=dtype)
    wide = [x.float() for x in inputs[:3]] + [inputs[3]]
    ours = favor_attention(*inputs, causal=True)
    assert ours.dtype == dtype
    assert same_bits(ours.float(), favor_attention(*wide, causal=True).to(dtype).float())


@pytest.mark.parametrize("form", ["plain", "padded", "packed"])
def test_compiles_into_one_graph_with_gradients(chunked, form):
    """On every device attention is one operator to the compiler."""
    inputs, options = case(form, 40, "positive", True)
    compiled = torch.compile(favor_attention, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, inputs, **options), gradients(favor_attention, inputs, **options), strict=True):
        assert same_bits(a, b)


def test_meta_tensors_give_shapes_of_outputs_and_states():
    q, k, v, omega = (x.to("meta") for x in tensors(1, 4, 9, kv_heads=2, d=8, e=3, m=16))
    for options, num_sequences in (({}, 1), ({"cu_seqlens": torch.tensor([0, 4, 9])}, 2)):
        out, state = favor_attention_with_state(q, k, v, omega, **options)
        assert (out.shape, state.shape) == ((1, 4, 9, 3), (num_sequences, 4, 16, 5))
        assert out.device.type == state.device.type == "meta"


def test_an_unknown_form_is_refused(monkeypatch):
    monkeypatch.setenv("PROTPERF_TORCH_FORM", "fast")
    with pytest.raises(ValueError, match=r"PROTPERF_TORCH_FORM is 'fast'; choose one of native, chunked"):
        favor_attention(*tensors())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("form", "feature_map", "causal"),
    [
        ("chunked", "positive", "causal"),
        ("chunked", "positive", "noncausal"),
        pytest.param("chunked", "relu", "causal", marks=pytest.mark.soak),
        ("native", "positive", "causal"),
    ],
)
def test_memory_is_that_of_inputs_output_and_gradients(form, feature_map, causal):
    environment = {**os.environ, "PROTPERF_TORCH_FORM": form, "PROTPERF_NUM_THREADS": "1"}
    words = [sys.executable, PROGRAM, "65536", feature_map, causal, "1"]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    print(f"{form} {feature_map} {causal}: peak {found['peak'] / found['held']:.2f} times inputs, output and gradients")
    assert found["peak"] < MAX_MEMORY * found["held"]
