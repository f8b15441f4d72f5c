"""Derivatives of every mode and order: right, or refused in words that name what can; never silently zero."""

import subprocess
import sys

import pytest
import torch
from attention_inputs import MAPS, tensors
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from protperf.torch import favor_attention, favor_attention_with_state, reference, softmax_attention

# torch's own: when forward mode is first used, and in what `linearize` traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),
]

SCALE = {"trigonometric": 0.3}
LENGTH = 5
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "padded": {"key_padding_mask": torch.tensor([[False, True, False, True, False]])},
    "packed": {"causal": True, "cu_seqlens": torch.tensor([0, 2, 2, 5])},
}
# Checked entry by entry, one map of each family; all others along random directions, which is a tenth of the work and
# misses a wrong derivative only where the directions happen to hide it.
ENTRY_BY_ENTRY = {("positive", "packed"), ("relu", "causal"), ("trigonometric", "padded")}
LINEARIZED = [("positive", "packed"), ("relu", "padded"), ("trigonometric", "causal")]


def inputs_of(feature_map, length=LENGTH, heads=1, **options):
    options = {"seed": length, **options}
    return tensors(1, heads, length, d=3, e=2, m=4, scale=SCALE.get(feature_map, 0.7), **options)


def leaves_of(feature_map, length=LENGTH):
    return [x.requires_grad_() for x in inputs_of(feature_map, length)]


def is_fast(feature_map, kind):
    return (feature_map, kind) not in ENTRY_BY_ENTRY


def close(a, b):
    a, b = pytree.tree_leaves(a), pytree.tree_leaves(b)
    assert any(x.abs().max() > 1e-4 for x in b), "everything is zero"
    return all(torch.allclose(x, y, rtol=1e-9, atol=1e-11) for x, y in zip(a, b, strict=True))


def both(feature_map, options):
    """The same call by ours and by the oracle."""
    return (
        lambda q, k, v, omega: favor_attention(q, k, v, omega, feature_map=feature_map, **options),
        lambda q, k, v, omega: reference.favor_attention(q, k, v, omega, feature_map=feature_map, **options),
    )


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("feature_map", MAPS)
def test_second_gradients(monkeypatch, feature_map, kind):
    """Of the kernels and, for padding and segments, of the chunked form."""
    monkeypatch.setenv("PROTPERF_TORCH_FORM", "chunked" if kind in ("padded", "packed") else "native")
    attention, _ = both(feature_map, OPTIONS[kind])
    assert torch.autograd.gradgradcheck(attention, leaves_of(feature_map), fast_mode=is_fast(feature_map, kind))


def test_a_third_gradient_depends_on_what_it_should():
    ours, plain = both("positive", {"causal": True})

    def third(attention):
        q, k, v, omega = leaves_of("positive", 4)
        found = attention(q, k, v, omega).square().sum()
        for _ in range(2):
            found = torch.autograd.grad(found, (q, k), create_graph=True)
            found = sum(x.square().sum() for x in found)
        return torch.autograd.grad(found, (q, k, v, omega))

    assert close(third(ours), third(plain))


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("feature_map", MAPS)
def test_forward_mode(feature_map, kind):
    attention, _ = both(feature_map, OPTIONS[kind])
    modes = {"check_forward_ad": True, "check_backward_ad": False, "fast_mode": is_fast(feature_map, kind)}
    assert torch.autograd.gradcheck(attention, leaves_of(feature_map), **modes)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("feature_map", ["positive", "relu", "trigonometric"])
def test_transforms_of_torch_func(feature_map, kind):
    ours, plain = both(feature_map, OPTIONS[kind])
    given = inputs_of(feature_map)
    tangents = tuple(torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(2)) for x in given)
    cotangent = torch.ones_like(given[2])
    func = torch.func
    every = (0, 1, 2, 3)
    for what in (
        lambda f: func.grad(lambda *x: f(*x).square().sum(), argnums=every)(*given),
        lambda f: func.vjp(f, *given)[1](cotangent),
        lambda f: func.jvp(f, given, tangents),
        lambda f: func.jacrev(f, argnums=(0, 3))(*given),
        lambda f: func.jacfwd(f, argnums=(0, 3))(*given),
        lambda f: func.hessian(lambda k: f(given[0], k, *given[2:]).square().sum())(given[1]),
        lambda f: func.jacrev(func.jacrev(lambda k: f(given[0], k, *given[2:]).square().sum()))(given[1]),
    ):
        assert close(what(ours), what(plain))


@pytest.mark.parametrize(("feature_map", "kind"), LINEARIZED)
def test_linearize(feature_map, kind):
    """Apart from the other transforms: torch traces every operation of the chunked form for it."""
    ours, plain = both(feature_map, OPTIONS[kind])
    given, tangents = inputs_of(feature_map), inputs_of(feature_map, seed=2)
    assert close(*(torch.func.linearize(f, *given)[1](*tangents) for f in (ours, plain)))


def test_vmap_over_inputs_and_over_omega():
    ours, _ = both("positive", {"causal": True})
    q, k, v, omega = inputs_of("positive")
    many = torch.stack([q, 2 * q, -q]), torch.stack([omega, omega + 0.1, -omega])
    mapped = torch.func.vmap(ours, (0, None, None, 0))(many[0], k, v, many[1])
    assert close(mapped, torch.stack([ours(a, k, v, b) for a, b in zip(*many, strict=True)]))
    loss = torch.func.grad(lambda q, omega: ours(q, k, v, omega).square().sum(), argnums=(0, 1))
    each = [loss(a, b) for a, b in zip(*many, strict=True)]
    assert close(torch.func.vmap(loss)(*many), [torch.stack(x) for x in zip(*each, strict=True)])
    with pytest.raises(ValueError, match=r"cu_seqlens has no values here"):
        torch.func.vmap(lambda borders: favor_attention(q, k, v, omega, cu_seqlens=borders))(torch.tensor([[0, 5]] * 2))


@pytest.mark.parametrize("outer", ["grad", "jvp", "dual"])
def test_a_compiled_call_inside_a_transform(outer):
    q, k, v, omega = inputs_of("positive")
    compiled = torch.compile(favor_attention, backend="aot_eager")
    compiled(q, k, v, omega)
    if outer == "grad":
        found, needed = (
            torch.func.grad(lambda q, f=f: f(q, k, v, omega).square().sum())(q) for f in (compiled, favor_attention)
        )
    elif outer == "jvp":
        found, needed = (
            torch.func.jvp(lambda q, f=f: f(q, k, v, omega), (q,), (k,)) for f in (compiled, favor_attention)
        )
    else:
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(compiled(forward_ad.make_dual(q, k), k, v, omega)).tangent
        needed = torch.func.jvp(lambda q: favor_attention(q, k, v, omega), (q,), (k,))[1]
    assert close(found, needed)


@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_a_compiled_transform(transform):
    q, k, v, omega = inputs_of("positive")
    functions = {
        "grad": lambda q: torch.func.grad(lambda q: favor_attention(q, k, v, omega).square().sum())(q),
        "jvp": lambda q: torch.func.jvp(lambda q: favor_attention(q, k, v, omega), (q,), (k,))[1],
    }
    torch._dynamo.reset()
    assert close(torch.compile(functions[transform], backend="aot_eager")(q), functions[transform](q))


def test_operators_refuse_a_tangent_and_name_the_function_that_takes_it():
    q, k, v, omega = inputs_of("positive")
    options = ("positive", True, 0.0, None, None, "auto")
    operators = torch.ops.protperf
    out, den = operators.favor(q, k, v, omega, *options)
    calls = [
        lambda q: operators.favor(q, k, v, omega, *options)[0],
        lambda q: operators.favor_state(q, k, v, omega, None, *options)[0],
        lambda q: operators.favor_backward(out, q, k, v, omega, out, den, True, *options)[0],
        lambda q: operators.favor_state_backward(out, None, q, k, v, omega, None, out, den, out, True, *options)[0],
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"call protperf\.torch\.favor_attention"):
            torch.func.jvp(call, (q,), (q,))
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"call protperf\.torch\.favor_attention"):
            call(forward_ad.make_dual(q, q))


@pytest.mark.parametrize("causal", [False, True])
def test_softmax_attention_in_forward_mode(causal):
    q, k, v, _ = leaves_of("positive")
    attention = lambda q, k, v: softmax_attention(q, k, v, causal=causal)  # noqa: E731
    assert torch.autograd.gradcheck(attention, (q, k, v), check_forward_ad=True)


# Values as wide as keys: torch's fused kernels, which have no second derivatives, take no others.
EXACT = {
    **OPTIONS,
    "blind": {"key_padding_mask": torch.ones(1, 5, dtype=torch.bool)},
    "window": {"window": 1},
    "window, causal": {"window": 2, "causal": True, "key_padding_mask": OPTIONS["padded"]["key_padding_mask"]},
    "window, packed": {"window": 1, **OPTIONS["packed"]},
}


@pytest.mark.parametrize("kind", EXACT)
def test_softmax_attention_has_every_derivative_of_first_and_second_order(kind):
    q, k, v = (x.requires_grad_() for x in tensors(1, 2, LENGTH, kv_heads=1, d=3, e=3)[:3])
    attention = lambda q, k, v: softmax_attention(q, k, v, **EXACT[kind])  # noqa: E731
    assert torch.autograd.gradcheck(attention, (q, k, v), check_forward_ad=True, fast_mode=True)
    modes = {"check_fwd_over_rev": True, "check_rev_over_rev": True}
    # Entry by entry for one of each code path.
    is_fast = kind not in ("causal", "window, causal")
    assert torch.autograd.gradgradcheck(attention, (q, k, v), fast_mode=is_fast, **modes)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("kind", ["causal", "padded", "window"])
def test_softmax_attention_in_transforms_of_torch_func(kind):
    given = [x.detach() for x in tensors(1, 1, LENGTH, d=3, e=3)[:3]]
    func, masks = torch.func, EXACT[kind]

    def ours(q, k, v):
        return softmax_attention(q, k, v, **masks)

    def plain(q, k, v):
        band = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs() > masks.get("window", LENGTH)
        band = band | torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1) if masks.get("causal") else band
        hidden = band | masks.get("key_padding_mask", torch.zeros(1, LENGTH, dtype=torch.bool))[:, None, None]
        return (q @ k.mT * 3**-0.5).masked_fill(hidden, -torch.inf).softmax(-1) @ v

    for what in (
        lambda f: func.grad(lambda *x: f(*x).square().sum(), argnums=(0, 1, 2))(*given),
        lambda f: func.jvp(f, tuple(given), (given[1], given[0], given[2])),
        lambda f: func.hessian(lambda k: f(given[0], k, given[2]).square().sum())(given[1]),
        lambda f: func.jacrev(func.jacrev(lambda q: f(q, *given[1:]).square().sum()))(given[0]),
        lambda f: func.vmap(f)(*(torch.stack([x, 2 * x]) for x in given)),
    ):
        assert close(what(ours), what(plain))


def test_a_third_gradient_of_softmax_attention_is_that_of_the_reference():
    def third(attention):
        leaves = [x.requires_grad_() for x in tensors(1, 1, 4, d=3, e=3)[:3]]
        found = attention(*leaves, causal=True).square().sum()
        for _ in range(2):
            found = sum(x.square().sum() for x in torch.autograd.grad(found, leaves[:2], create_graph=True))
        return torch.autograd.grad(found, leaves)

    assert close(third(softmax_attention), third(reference.softmax_attention))


def test_the_first_gradient_of_softmax_attention_is_that_of_torchs_kernel_and_keeps_no_square():
    q, k, v = tensors(1, 1, 512, d=8, e=8, dtype=torch.float32, requires_grad=True)[:3]
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.setdefault(x.data_ptr(), x), lambda x: x):
        out = softmax_attention(q, k, v, causal=True)
    assert max(x.numel() for x in saved.values()) < 512 * 512 / 16
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    found, needed = (torch.autograd.grad(x, (q, k, v), weight, retain_graph=True) for x in (out, theirs))
    assert all(torch.equal(a, b) for a, b in zip(found, needed, strict=True))
    # Half types are widened where the gradient is written out.
    half = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    written_out = torch.autograd.grad(softmax_attention(*half, causal=True), half, weight.bfloat16(), create_graph=True)
    assert all(x.dtype == torch.bfloat16 for x in written_out)
    assert all((a - b).norm() < 0.02 * b.norm() for a, b in zip(written_out, needed, strict=True))


def state_case(feature_map, kind):
    """A call from a state, and its leaves: q, k, v, omega and the sums of the state (its references are integers)."""
    leaves = leaves_of(feature_map)
    num_sequences = 3 if kind == "packed" else 1
    before = tensors(num_sequences, 1, 4, d=3, e=2, m=4, scale=SCALE.get(feature_map, 0.7), seed=9)
    state = favor_attention_with_state(*before, feature_map=feature_map)[1].detach()
    options = {"causal": False, **OPTIONS[kind]}

    def attention(q, k, v, omega, sums):
        given = torch.cat([state[..., :1], sums], -1)
        out, after = favor_attention_with_state(q, k, v, omega, given, feature_map=feature_map, **options)
        return out, after[..., 1:]

    return attention, (*leaves, state[..., 1:].clone().requires_grad_())


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("feature_map", MAPS)
def test_gradients_through_states_in_and_out(feature_map, kind):
    attention, leaves = state_case(feature_map, kind)
    modes = {"check_forward_ad": True, "nondet_tol": 0.0, "fast_mode": is_fast(feature_map, kind)}
    assert torch.autograd.gradcheck(attention, leaves, **modes)


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("feature_map", ["positive", "relu"])
def test_second_gradients_through_states_in_and_out(feature_map, kind):
    attention, leaves = state_case(feature_map, kind)
    assert torch.autograd.gradgradcheck(attention, leaves, fast_mode=(feature_map, kind) != ("positive", "packed"))


@pytest.mark.parametrize("feature_map", MAPS)
def test_the_gradient_of_a_sequence_in_parts_is_that_of_the_whole(feature_map):
    """Truncated back-propagation without the truncation: what context parallelism stands on."""
    scale = SCALE.get(feature_map, 1.0)
    leaves = [x.requires_grad_() for x in tensors(2, 4, 60, kv_heads=2, d=5, e=6, m=7, scale=scale)]
    q, k, v, omega = leaves
    state, parts = None, []
    for low, high in ((0, 17), (17, 18), (18, 60)):
        part = (x[:, :, low:high] for x in (q, k, v))
        out, state = favor_attention_with_state(*part, omega, state, feature_map=feature_map)
        parts.append(out)
    in_parts = torch.autograd.grad(torch.cat(parts, 2).square().sum(), leaves)
    whole = torch.autograd.grad(favor_attention(*leaves, feature_map=feature_map, causal=True).square().sum(), leaves)
    assert close(in_parts, whole)


def test_a_loss_of_the_state_alone_reaches_the_keys():
    q, k, v, omega = leaves_of("positive")
    _, state = favor_attention_with_state(q, k, v, omega)
    dq, dk, dv, domega = torch.autograd.grad(state[..., 1:].square().sum(), (q, k, v, omega))
    assert (dq == 0).all()
    assert all((g != 0).any() for g in (dk, dv, domega))
    dq, dk, dv = torch.autograd.grad(favor_attention_with_state(q, k, v, omega)[0].sum(), (q, k, v))
    assert all((g != 0).any() for g in (dq, dk, dv))


def test_state_functions_compile_into_one_graph_with_gradients():
    q, k, v, omega = leaves_of("positive")
    state = favor_attention_with_state(q, k, v, omega)[1].detach().requires_grad_()

    def loss(attention):
        out, after = attention(q, k, v, omega, state)
        return torch.autograd.grad(out.sum() + after[..., 1:].sum(), (q, k, v, omega, state))

    compiled = torch.compile(favor_attention_with_state, fullgraph=True, backend="aot_eager")
    assert close(loss(compiled), loss(favor_attention_with_state))


@pytest.mark.parametrize("form", ["native", "chunked"])
def test_bfloat16_training_saves_no_widened_copy(monkeypatch, form):
    monkeypatch.setenv("PROTPERF_TORCH_FORM", form)
    q, k, v, omega = tensors(1, 2, 512, d=64, e=64, m=32, dtype=torch.bfloat16)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.setdefault(x.data_ptr(), x), lambda x: x):
        out = favor_attention(*leaves, omega)
    size = sum(x.numel() * x.element_size() for x in saved.values())
    # q, k, v, out, and two float32 numbers per row.
    assert size <= sum(x.numel() * 2 for x in (*leaves, out)) + 512 * 2 * 8 + omega.numel() * 8
    ours = torch.autograd.grad(out.float().square().sum(), leaves)
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    plain = torch.autograd.grad(favor_attention(*wide, omega).square().sum(), wide)
    assert all((a - b).norm() < 0.02 * b.norm() for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("attention", ["favor", "softmax"])
def test_autocast_casts_as_torchs_own_attention_does(attention):
    q, k, v, omega = (x.float() for x in tensors(1, 2, 16))
    call = {
        "favor": lambda *x: favor_attention(*x, omega, causal=True),
        "softmax": lambda *x: softmax_attention(*x, causal=True),
    }[attention]
    narrow = [x.bfloat16() for x in (q, k, v)]
    with pytest.raises(TypeError, match="one type"):
        call(q, k, narrow[2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.nn.functional.scaled_dot_product_attention(q, k, narrow[2]).dtype == torch.bfloat16
        mixed = call(q, k, narrow[2])
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        grads = torch.autograd.grad(call(*leaves).float().sum(), leaves)
        # The chunked form, which torch.func takes, multiplies matrices that autocast must leave alone.
        mapped = torch.func.vmap(call)(*(x[None] for x in (q, k, v)))[0] if attention == "favor" else mixed
        wide = call(*(x.double() for x in (q, k, v)))
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, call(*narrow))
    assert all(g.dtype == torch.float32 for g in grads)
    assert (mapped - mixed).abs().max() < 0.02
    assert wide.dtype == torch.float64


def test_the_compiler_is_not_loaded_for_attention():
    """It takes seconds; a command that scores one sequence must not wait for it."""
    program = (
        "import sys, torch\n"
        "from protperf.torch import favor_attention, favor_attention_with_state, nn\n"
        "q = torch.ones(1, 1, 8, 4, requires_grad=True)\n"
        "module = nn.FavorAttention(4, 6)\n"
        "(module(q, q, q).sum() + module.with_state(q, q, q)[0].sum()).backward()\n"
        "print(*(x for x in sys.modules if x in ('torch._dynamo', 'triton', 'sympy')))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.strip() == ""
