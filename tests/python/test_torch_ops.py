"""The torch operators: schema, fakes, gradients, compilation, types, states."""

import itertools

import pytest
import torch
from attention_inputs import MAPS, same_bits, tensors, worst

import protperf
from protperf.errors import OutOfMemory
from protperf.torch import (
    favor_attention,
    favor_attention_with_state,
    merge_states,
    reference,
    softmax_attention,
)

SCALE = {"trigonometric": 0.3}


def mask_of(batch, length):
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[0, length // 2 :] = True
    mask[-1, 0] = True
    return mask


def gradients(attention, inputs, weight, **options):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = attention(*leaves, **options)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", MAPS)
def test_values_and_gradients_match_the_reference(feature_map, causal):
    for length in (1, 2, 16, 33, 70):
        inputs = tensors(2, 4, length, d=5, e=6, m=7, kv_heads=2, scale=SCALE.get(feature_map, 1.0), seed=length)
        weight = torch.randn(2, 4, length, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
        for mask in (None, mask_of(2, length)):
            options = {"feature_map": feature_map, "causal": causal, "key_padding_mask": mask}
            ours = gradients(favor_attention, inputs, weight, **options)
            plain = gradients(reference.favor_attention, inputs, weight, **options)
            for name, a, b in zip(("out", "dq", "dk", "dv", "domega"), ours, plain, strict=True):
                assert worst(a, b) < 1e-10 * max(1.0, b.abs().max().item()), (name, length, mask is not None)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", MAPS)
def test_float32_gradients_are_within_1e5_of_the_reference(feature_map, causal):
    scale = 0.5 if feature_map == "trigonometric" else 1.0
    inputs = tensors(1, 1, 96, d=64, e=64, m=256, scale=scale)
    weight = torch.randn(1, 1, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    single = [x.float() for x in inputs[:3]] + [inputs[3]]
    options = {"feature_map": feature_map, "causal": causal}
    ours = gradients(favor_attention, single, weight.float(), **options)
    plain = gradients(reference.favor_attention, [x.double() for x in single], weight.float().double(), **options)
    for name, a, b in zip(("out", "dq", "dk", "dv", "domega"), ours, plain, strict=True):
        assert worst(a, b) < 1e-5 * max(1.0, b.abs().max().item()), name


def gradcheck_inputs(length, scale):
    """Two heads where that is cheap: the slow mode calls twice for every number."""
    heads = 2 if length < 16 else 1
    return [x.requires_grad_() for x in tensors(1, heads, length, d=3, e=2, m=4, scale=scale, seed=length)]


@pytest.mark.parametrize("length", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", MAPS)
def test_gradcheck(feature_map, causal, length):
    q, k, v, omega = gradcheck_inputs(length, SCALE.get(feature_map, 0.7))
    for mask in (None, mask_of(1, length)):

        def attention(q, k, v, omega, mask=mask):
            return favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal, key_padding_mask=mask)

        assert torch.autograd.gradcheck(attention, (q, k, v, omega), nondet_tol=0.0)


@pytest.mark.parametrize("causal", [False, True])
def test_gradcheck_of_packed_segments(causal):
    q, k, v, omega = gradcheck_inputs(9, 0.7)
    borders = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    assert torch.autograd.gradcheck(
        lambda *x: favor_attention(*x, causal=causal, cu_seqlens=borders), (q, k, v, omega), nondet_tol=0.0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case",
    ["plain", "causal", "mask", "segments", "no omega", "heads", "backend", "state", "no state", "state of segments"],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(dtype, case):
    q, k, v, omega = tensors(1, 2, 6, d=4, e=3, m=5, dtype=dtype)
    q, k, v, omega = (x.requires_grad_() for x in (q, k, v, omega))
    borders = torch.tensor([0, 2, 6]) if "segments" in case else None
    mask = mask_of(1, 6) if case == "mask" else None
    if case == "heads":
        omega = torch.stack([omega, omega + 0.1]).detach().requires_grad_()
    feature_map = "relu" if case == "no omega" else "positive"
    args = (q, k, v, None if case == "no omega" else omega)
    backend = "reference" if case == "backend" else "auto"
    options = (feature_map, case != "plain", 1e-3 if feature_map == "relu" else 0.0, borders, mask, backend)
    if "state" in case:
        num_sequences = 2 if "segments" in case else 1
        before = favor_attention_with_state(
            *(x.detach().expand(num_sequences, -1, -1, -1) for x in (q, k, v)), omega.detach()
        )
        state = None if case == "no state" else before[1].requires_grad_()
        torch.library.opcheck(torch.ops.protperf.favor_state.default, (*args, state, *options))
        args = (*(x.detach() for x in args), before[1].detach())
        out, den, after = torch.ops.protperf.favor_state(*args, *options)
        grads = (torch.ones_like(out), torch.ones_like(after))
        backward = torch.ops.protperf.favor_state_backward.default
        torch.library.opcheck(backward, (*grads, *args, out, den, after, True, *options))
        return
    torch.library.opcheck(torch.ops.protperf.favor.default, (*args, *options))
    args = tuple(None if x is None else x.detach() for x in args)
    out, den = torch.ops.protperf.favor(*args, *options)
    backward = torch.ops.protperf.favor_backward.default
    with_omega = args[3] is not None
    torch.library.opcheck(backward, (torch.ones_like(out), *args, out, den, with_omega, *options))


def test_no_operator_is_registered_that_no_opcheck_has_seen():
    """Each `test_opcheck` runs all of torch's checks: schema, registration, fakes, and gradients of dynamic shapes."""
    checked = {
        "here": {"favor", "favor_backward", "favor_state", "favor_state_backward"},
        "test_log_linear_torch": {"log_linear", "log_linear_backward"},
        "test_block": {"block", "block_backward", "token_loss"},
        "test_redraw": {"redraw_"},
    }
    registered = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("protperf::")}
    assert {name.partition("::")[2] for name in registered} == set().union(*checked.values())


@pytest.mark.parametrize("feature_map", ["positive", "relu"])
def test_compiles_into_one_graph(feature_map):
    inputs = tensors(1, 2, 12, dtype=torch.float32)
    weight = torch.ones(1, 2, 12, 8)
    options = {"feature_map": feature_map, "causal": True}
    compiled = torch.compile(favor_attention, fullgraph=True, backend="aot_eager")
    eager, graph = (gradients(f, inputs, weight, **options) for f in (favor_attention, compiled))
    assert all(same_bits(a, b) for a, b in zip(eager, graph, strict=True))


@pytest.mark.parametrize("causal", [False, True])
def test_one_graph_of_dynamic_shapes_serves_every_length(causal):
    graphs = 0

    def backend(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(favor_attention, fullgraph=True, dynamic=True, backend=backend)
    for length in (12, 13, 64, 65, 130):
        inputs = tensors(2, 2, length, e=5, dtype=torch.float32, seed=length)
        weight = torch.ones(2, 2, length, 5)
        eager, graph = (gradients(f, inputs, weight, causal=causal) for f in (favor_attention, compiled))
        assert all(same_bits(a, b) for a, b in zip(eager, graph, strict=True)), length
    assert graphs == 1


@pytest.mark.parametrize("feature_map", MAPS)
def test_compiles_ahead_of_time_with_dynamic_shapes(feature_map):
    torch._dynamo.reset()
    compiled = torch.compile(favor_attention, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (12, 70):
        inputs = tensors(1, 2, length, dtype=torch.float32, seed=length)
        weight = torch.ones(1, 2, length, 8)
        options = {"feature_map": feature_map, "causal": True}
        eager, graph = (gradients(f, inputs, weight, **options) for f in (favor_attention, compiled))
        assert all(same_bits(a, b) for a, b in zip(eager, graph, strict=True)), length


class Attention(torch.nn.Module):
    """What `torch.export` takes: a module around the function."""

    def forward(self, q, k, v, omega):
        return favor_attention(q, k, v, omega, causal=True)


def test_exports_with_a_length_of_any_size():
    inputs = tensors(1, 2, 12, dtype=torch.float32)
    length = torch.export.Dim("length", min=2)
    shapes = {name: {2: length} for name in ("q", "k", "v")} | {"omega": None}
    exported = torch.export.export(Attention(), tuple(inputs), dynamic_shapes=shapes).module()
    for other in (12, 33, 129):
        given = tensors(1, 2, other, dtype=torch.float32, seed=other)
        assert same_bits(exported(*given), Attention()(*given))


def test_compiles_with_segments_and_masks():
    q, k, v, omega = tensors(1, 2, 12, dtype=torch.float32)
    compiled = torch.compile(favor_attention, fullgraph=True, backend="aot_eager")
    for options in ({"cu_seqlens": torch.tensor([0, 5, 12])}, {"key_padding_mask": mask_of(1, 12)}):
        assert same_bits(compiled(q, k, v, omega, **options), favor_attention(q, k, v, omega, **options))


def test_softmax_attention_compiles_into_one_graph():
    q, k, v, _ = tensors(1, 2, 12)
    compiled = torch.compile(softmax_attention, fullgraph=True, backend="aot_eager")
    for options in (
        {"causal": True},
        {"cu_seqlens": torch.tensor([0, 5, 12])},
        {"key_padding_mask": mask_of(1, 12)},
    ):
        assert worst(compiled(q, k, v, **options), softmax_attention(q, k, v, **options)) < 1e-14


def test_segments_are_checked_in_a_compiled_graph_too():
    q, k, v, omega = tensors(1, 2, 12, dtype=torch.float32)
    compiled = torch.compile(favor_attention, fullgraph=True, backend="aot_eager")
    for borders in ([0, 5, 13], [0, 7, 5, 12], [1, 12], [-3, 12]):
        with pytest.raises(ValueError, match="cu_seqlens"):
            compiled(q, k, v, omega, cu_seqlens=torch.tensor(borders))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_computed_in_float32(dtype):
    inputs = tensors(1, 2, 40, dtype=dtype)
    wide = [x.float() for x in inputs[:3]] + [inputs[3]]
    ours, exact = favor_attention(*inputs, causal=True, backend="cpu"), favor_attention(*wide, causal=True)
    assert ours.dtype == dtype
    assert same_bits(ours.float(), exact.to(dtype).float())
    # By itself a processor with AMX rounds the factors of products of bfloat16 too, and sums them in float32.
    chosen = favor_attention(*inputs, causal=True)
    assert chosen.dtype == dtype
    assert (chosen.float() - exact).norm() < 0.008 * exact.norm()
    leaves = [x.detach().clone().requires_grad_() for x in inputs[:3]]
    favor_attention(*leaves, inputs[3]).sum().backward()
    assert all(x.grad.dtype == dtype for x in leaves)


def test_numpy_and_torch_agree_bit_for_bit():
    q, k, v, omega = tensors(2, 2, 70, dtype=torch.float32)
    for causal in (False, True):
        ours = favor_attention(q, k, v, omega, causal=causal)
        assert same_bits(ours, protperf.favor_attention(*(x.numpy() for x in (q, k, v, omega)), causal=causal))


@pytest.mark.parametrize("feature_map", MAPS)
def test_a_sequence_in_parts_equals_the_whole(feature_map):
    q, k, v, omega = tensors(2, 4, 40, kv_heads=2, scale=SCALE.get(feature_map, 1.0))
    whole = favor_attention(q, k, v, omega, feature_map=feature_map, causal=True)
    for borders in ([0, 40], [0, 1, 2, 3, 17, 17, 40], list(range(41))):
        state, parts = None, []
        for a, b in itertools.pairwise(borders):
            part = (q[:, :, a:b], k[:, :, a:b], v[:, :, a:b])
            out, state = favor_attention_with_state(*part, omega, state, feature_map=feature_map)
            parts.append(out)
        assert worst(torch.cat(parts, 2), whole) < 1e-10


@pytest.mark.parametrize("feature_map", MAPS)
def test_merged_states_read_like_one(feature_map):
    q, k, v, omega = tensors(1, 2, 30, scale=SCALE.get(feature_map, 1.0))
    options = {"feature_map": feature_map}
    cut = [(x[:, :, :11], x[:, :, 11:20], x[:, :, 20:]) for x in (q, k, v)]
    states = [favor_attention_with_state(*(x[i] for x in cut), omega, **options)[1] for i in range(2)]
    merged = merge_states(*states)
    last, _ = favor_attention_with_state(*(x[2] for x in cut), omega, merged, **options)
    whole = favor_attention(q, k, v, omega, causal=True, **options)
    assert worst(last, whole[:, :, 20:]) < 1e-10
    swapped, _ = favor_attention_with_state(*(x[2] for x in cut), omega, merge_states(*states[::-1]), **options)
    assert worst(swapped, last) < 1e-10


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_attention_matches_the_reference_forward_and_backward(causal):
    q, k, v, _ = tensors(2, 4, 21, kv_heads=2, e=5)
    weight = torch.randn(2, 4, 21, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    packed = tensors(1, 2, 21, e=5, seed=5)[:3]
    borders = torch.tensor([0, 7, 7, 21])
    for inputs, options in (
        ((q, k, v), {}),
        ((q, k, v), {"key_padding_mask": mask_of(2, 21)}),
        (packed, {"cu_seqlens": borders}),
    ):
        w = weight[: inputs[0].shape[0], : inputs[0].shape[1]]
        ours = gradients(softmax_attention, inputs, w, causal=causal, **options)
        plain = gradients(reference.softmax_attention, inputs, w, causal=causal, **options)
        numpy_options = {name: x.numpy() for name, x in options.items()}
        exact = protperf.softmax_attention(*(x.numpy() for x in inputs), causal=causal, **numpy_options)
        assert worst(ours[0], exact) < 1e-12
        assert all(worst(a, b) < 1e-12 for a, b in zip(ours, plain, strict=True)), options


@pytest.mark.parametrize("attention", ["favor", "reference", "softmax"])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_row_that_is_not_finite_poisons_only_who_sees_it(attention, where):
    inputs = [x.clone() for x in tensors(2, 2, 40)]
    forms = {
        "favor": favor_attention,
        "reference": reference.favor_attention,
        "softmax": lambda q, k, v, _, **options: softmax_attention(q, k, v, **options),
    }
    clean = forms[attention](*inputs, causal=True)
    inputs[where][0, 1, 17, 2] = torch.inf
    out = forms[attention](*inputs, causal=True)
    reached = torch.zeros(2, 2, 40, dtype=torch.bool)
    reached[0, 1, 17 : 18 if where == 0 else None] = True
    assert out[reached].isnan().all()
    assert torch.equal(out[~reached], clean[~reached])
    whole = forms[attention](*inputs)
    reached[0, 1, : 17 if where else 0] = True
    assert torch.equal(whole.isnan().any(-1), reached)


def test_meta_tensors_give_shapes():
    q = torch.empty(2, 4, 9, 8, device="meta")
    k, v = torch.empty(2, 2, 9, 8, device="meta"), torch.empty(2, 2, 9, 3, device="meta")
    out = favor_attention(q, k, v, torch.empty(16, 8, device="meta"))
    assert out.shape == (2, 4, 9, 3)
    assert out.device.type == "meta"


def test_torchs_failed_allocation_is_a_memory_error():
    big = torch.zeros(1).expand(1, 1, 2**40, 2**10)
    with pytest.raises(OutOfMemory):
        favor_attention(big, big[:, :, :1], big[:, :, :1], torch.ones(1, 2**10))


class DTensor(torch.Tensor):
    """Stands for torch.distributed's, which needs a process group; known by where it is defined."""


DTensor.__module__ = "torch.distributed.tensor"

KINDS = {
    "borders list": ({"cu_seqlens": [0, 6]}, "cu_seqlens must be a torch tensor, not list"),
    "borders float": ({"cu_seqlens": torch.tensor([0.0, 6.0])}, "cu_seqlens has type float32"),
    "mask list": ({"key_padding_mask": [[True] * 6]}, "key_padding_mask must be a torch tensor, not list"),
    "causal text": ({"causal": "yes"}, "causal must be True or False"),
    "causal number": ({"causal": 1}, "causal must be True or False"),
    "causal tensor": ({"causal": torch.tensor(True)}, "causal must be True or False"),
    "no map": ({"feature_map": None}, "feature_map must be a string, not None"),
    "map list": ({"feature_map": ["relu"]}, "feature_map must be a string, not list"),
    "nested": (
        {"q": lambda: torch.nested.nested_tensor([torch.ones(1, 2, 4)])},
        "q is a nested tensor; pack its sequences",
    ),
    "distributed": ({"k": torch.ones(1, 2, 6, 4).as_subclass(DTensor)}, "k is a DTensor"),
    "omega list": ({"omega": [[1.0] * 4]}, "omega must be a torch tensor, not list"),
    "state list": ({"state": [1.0]}, "state must be a torch tensor, not list"),
    "state shape": ({"state": torch.ones(1, 2, 5, 3)}, r"state has shape \[1, 2, 5, 3\], needed is \[B,H,F,2\+E\]"),
    "state type": ({"state": torch.ones(1, 2, 5, 6, dtype=torch.float64)}, "state has type float64"),
    "states of segments": (
        {"state": torch.ones(1, 2, 5, 6), "cu_seqlens": torch.tensor([0, 3, 6])},
        r"needed is \[num_segments,H,F,2\+E\] \[2, 2, 5, 6\]",
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_arguments_of_a_wrong_kind_end_in_errors_of_ours(kind):
    changes, message = KINDS[kind]
    ones = torch.ones(1, 2, 6, 4)
    changes = {name: x() if callable(x) else x for name, x in changes.items()}
    arguments = {"q": ones, "k": ones, "v": ones, "omega": torch.ones(5, 4), **changes}
    functions = [favor_attention_with_state] if "state" in kind else [favor_attention, favor_attention_with_state]
    for function in functions:
        with pytest.raises((TypeError, ValueError), match=message) as caught:
            function(**arguments)
        assert isinstance(caught.value, protperf.Error)
    if "map" in kind or "omega" in kind or "state" in kind:
        return
    del arguments["omega"]
    with pytest.raises(protperf.Error, match=message):
        softmax_attention(**arguments)


def test_tensors_to_merge_of_a_wrong_kind_end_in_errors_of_ours():
    state = torch.ones(1, 2, 5, 6)
    for other, message in (
        ([1.0], "b must be a torch tensor, not list"),
        (state[:, :1], "both must be the same"),
        (state.double(), "both must be float32 or both float64"),
        (state.to("meta"), "both must be on one device"),
    ):
        with pytest.raises(protperf.Error, match=message):
            merge_states(state, other)
