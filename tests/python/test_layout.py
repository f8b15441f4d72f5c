"""Any tensor torch can make: bitwise the answer of the contiguous call, or an error that names the argument."""

import numpy as np
import pytest
import torch
from attention_inputs import arrays, same_bits, tensors

import protperf
from protperf.torch import favor_attention, favor_attention_with_state, softmax_attention

NAMES = ("q", "k", "v", "omega")


def transposed(x):
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def heads_last(x):
    return x.transpose(0, -2).contiguous().transpose(0, -2)


def every_second(x):
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


def rows_of_a_larger_one(x):
    wide = torch.full((*x.shape[:-2], x.shape[-2] + 5, x.shape[-1] + 3), torch.nan, dtype=x.dtype)
    wide[..., 2:-3, 1:-2] = x
    return wide[..., 2:-3, 1:-2]


def unaligned(x):
    raw = bytearray(1 + x.numel() * x.element_size())
    raw[1:] = x.contiguous().numpy().tobytes()
    return torch.frombuffer(raw, dtype=torch.uint8, offset=1).numpy().view(x.numpy().dtype), x.shape


def unaligned_tensor(x):
    flat, shape = unaligned(x)
    return torch.from_numpy(flat).reshape(shape)


def negated(x):
    return torch._neg_view(-x)


def at_an_odd_stride_of_a_single_entry(x):
    return x.as_strided(x.shape, [s if n > 1 else 97 for n, s in zip(x.shape, x.stride(), strict=True)])


def leaf_view(x):
    return x.clone().requires_grad_()[:]


LAYOUTS = [
    transposed,
    heads_last,
    every_second,
    rows_of_a_larger_one,
    unaligned_tensor,
    negated,
    at_an_odd_stride_of_a_single_entry,
    leaf_view,
]


def all_of(attention, inputs, grad, **options):
    """Output and gradients; the arguments themselves, not copies, go into the call."""
    leaves = [x if x.requires_grad else x.requires_grad_() for x in inputs]
    out = attention(*leaves, **options)
    return [out, *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("position", range(5), ids=[*NAMES, "grad"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
def test_every_layout_of_every_argument(layout, position, causal, dtype):
    for shape in ({}, {"d": 1, "e": 1, "h": 1, "m": 1}):
        q, k, v, omega = tensors(2, **({"h": 3, "q_len": 35} | shape), dtype=dtype, seed=1)
        grad = torch.randn_like(q[..., :1].expand(*q.shape[:3], v.shape[3]))
        given = [q, k, v, omega.to(dtype), grad]
        changed = [x.clone() for x in given]
        changed[position] = layout(changed[position])
        needed = all_of(favor_attention, given[:4], given[4], causal=causal)
        found = all_of(favor_attention, changed[:4], changed[4], causal=causal)
        assert all(same_bits(a, b) for a, b in zip(needed, found, strict=True))


@pytest.mark.parametrize("feature_map", ["positive", "relu", "trigonometric"])
@pytest.mark.parametrize("position", range(5), ids=[*NAMES, "grad"])
def test_expanded_and_overlapping_tensors(position, feature_map):
    given = [*tensors(2, 3, 16, d=8, m=16, scale=0.5)]
    given.append(torch.randn_like(given[0]))
    x = given[position]
    expanded = x[..., :1, :].expand(x.shape)
    step = x.contiguous().flatten()[: sum(n for n in x.shape)]
    overlapping = step.as_strided(x.shape, [1] * x.dim())
    for view in (expanded, overlapping, x[..., :1].expand(x.shape)):
        plain, odd = [y.clone() for y in given], [y.clone() for y in given]
        plain[position], odd[position] = view.contiguous().clone(), view.detach()
        needed, found = (all_of(favor_attention, y[:4], y[4], feature_map=feature_map) for y in (plain, odd))
        assert all(same_bits(a, b) for a, b in zip(needed, found, strict=True))


def test_the_gradient_of_a_sum_is_expanded_and_right():
    q, k, v, omega = tensors(2, 2, 20, requires_grad=True)
    ours = torch.autograd.grad(favor_attention(q, k, v, omega).sum(), (q, k, v))
    ones = torch.ones(2, 2, 20, 8, dtype=torch.float64)
    needed = torch.autograd.grad(favor_attention(q, k, v, omega), (q, k, v), ones)
    assert all(same_bits(a, b) for a, b in zip(ours, needed, strict=True))


def test_masks_and_borders_of_any_layout():
    q, k, v, omega = tensors(2, 2, 24, dtype=torch.float32)
    mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(1)) < 0.3
    needed = favor_attention(q, k, v, omega, key_padding_mask=mask)
    wide = torch.ones(2, 48, dtype=torch.bool)
    wide[:, ::2] = mask
    for view in (mask.T.contiguous().T, wide[:, ::2]):
        assert same_bits(favor_attention(q, k, v, omega, key_padding_mask=view), needed)
        assert same_bits(
            softmax_attention(q, k, v, key_padding_mask=view), softmax_attention(q, k, v, key_padding_mask=mask)
        )
    one = [x[:1] for x in (q, k, v)]
    borders = torch.tensor([0, 9, 3, 9, 24, 24])[::2]
    needed = favor_attention(*one, omega, cu_seqlens=torch.tensor([0, 3, 24]))
    assert same_bits(favor_attention(*one, omega, cu_seqlens=borders), needed)
    assert same_bits(favor_attention(*one, omega, cu_seqlens=borders.int()), needed)


def test_states_of_any_layout():
    q, k, v, omega = tensors(1, 2, 12)
    _, state = favor_attention_with_state(q, k, v, omega)
    needed = favor_attention_with_state(q, k, v, omega, state)
    for layout in (transposed, every_second, rows_of_a_larger_one, unaligned_tensor, negated):
        found = favor_attention_with_state(q, k, v, omega, layout(state))
        assert all(same_bits(a, b) for a, b in zip(needed, found, strict=True))


@pytest.mark.parametrize("position", range(4), ids=NAMES)
def test_numpy_arrays_of_any_layout(position):
    given = list(arrays(2, 3, 19, dtype=np.float32))
    needed = protperf.favor_attention(*given, causal=True)
    x = given[position]
    wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
    wide[..., ::2] = x
    flat, shape = unaligned(torch.from_numpy(x))
    assert not flat.flags.aligned
    read_only = x.copy()
    read_only.flags.writeable = False
    fields = np.zeros(x.shape, [("pad", "u1"), ("x", x.dtype)])
    fields["x"] = x
    for view in (
        np.asfortranarray(x),
        wide[..., ::2],
        x[..., ::-1, :].copy()[..., ::-1, :],
        x[..., ::-1].copy()[..., ::-1],
        flat.reshape(shape),
        x.astype(x.dtype.newbyteorder()),
        read_only,
        fields["x"],
        x.tolist() if position == 3 else x.astype(np.float32).view(np.recarray),
    ):
        changed = list(given)
        changed[position] = view
        assert np.array_equal(protperf.favor_attention(*changed, causal=True).astype(np.float32), needed)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("position", range(4), ids=NAMES)
@pytest.mark.parametrize(
    "kind",
    ["int", "bool", "complex", "sparse", "csr", "quantised", "meta", "numpy", "list", "float8", "nested", "None"],
)
def test_what_no_kernel_takes_is_refused_by_name(kind, position):
    given = list(tensors(1, 2, 6, dtype=torch.float32))
    x = given[position]
    make = {
        "int": lambda: x.int(),
        "bool": lambda: x > 0,
        "complex": lambda: torch.complex(x, x).conj(),
        "sparse": lambda: x.to_sparse(),
        "csr": lambda: x.to_sparse_csr() if x.dim() == 2 else x[0, 0].to_sparse_csr(),
        "quantised": lambda: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
        "meta": lambda: x.to("meta"),
        "numpy": lambda: x.numpy(),
        "list": lambda: x.tolist(),
        "float8": lambda: x.to(torch.float8_e4m3fn),
        "nested": lambda: torch.nested.nested_tensor([x, x]),
        "None": lambda: None,
    }
    given[position] = make[kind]()
    # A meta q is a fake call, and the others are then on the wrong device.
    with pytest.raises((TypeError, ValueError), match=r"q and k|\b" + NAMES[position] + r"\b| but q is on meta"):
        favor_attention(*given)


def test_empty_tensors_have_empty_answers_and_gradients():
    for shape in ({"b": 0}, {"h": 0, "kv_heads": 0}, {"q_len": 0}, {"kv_len": 0}, {"e": 0}):
        q, k, v, omega = tensors(**({"q_len": 4} | shape), requires_grad=True)
        for out in (favor_attention(q, k, v, omega), softmax_attention(q, k, v)):
            assert out.shape == (*q.shape[:3], v.shape[3])
            assert (out == 0).all()
            grads = torch.autograd.grad(out.sum(), (q, k, v))
            assert all((g == 0).all() for g in grads)
