"""Exponential maps given by their parameters, through torch: values, every derivative, states, refusals."""

import numpy as np
import pytest
import torch
from attention_inputs import arrays, tensors, worst

import protperf
from protperf import LogLinear, errors
from protperf.torch import favor_attention, favor_attention_with_state

# torch's own, when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")

FORMS = ["native", "chunked"]
KINDS = {
    "plain": {},
    "causal": {"causal": True},
    "padded": {"key_padding_mask": torch.tensor([[False, True, False, True, False]])},
    "packed": {"causal": True, "cu_seqlens": torch.tensor([0, 2, 2, 5])},
}
# Which of the five are given, and whether each head has its own.
GIVEN = {
    "all": (True, True, True, True, True),
    "directions alone": (True, False, False, False, False),
    "quadratic": (True, False, True, False, False),
    "constants": (True, False, False, True, True),
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    monkeypatch.setenv("PROTPERF_TORCH_FORM", request.param)
    return request.param


def parameters(given="all", heads=None, m=4, d=3, seed=5, dtype=torch.float64):
    """Leaves of a map, or None in the place of what is not given."""
    rng = np.random.default_rng(seed)
    first = () if heads is None else (heads,)
    shapes = [(*first, m, d), (*first, m, d), (*first, d), (*first, m), (*first, m)]
    drawn = [torch.from_numpy(0.7 * rng.standard_normal(shape)).to(dtype).requires_grad_() for shape in shapes]
    return [x if there else None for x, there in zip(drawn, GIVEN[given], strict=True)]


def case(given="all", heads=None, length=5, kind="plain"):
    """A call as a function of its leaves, and the leaves; two heads of queries share keys where each has parameters."""
    q, k, v, _ = tensors(1, heads or 1, length, kv_heads=1, d=3, e=2, scale=0.7, requires_grad=True)
    fields = parameters(given, heads)
    present = [x for x in fields if x is not None]

    def attention(q, k, v, *leaves):
        rest = iter(leaves)
        record = LogLinear(*(None if x is None else next(rest) for x in fields))
        return favor_attention(q, k, v, None, feature_map=record, **KINDS[kind])

    return attention, (q, k, v, *present)


@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("given", GIVEN)
def test_values_are_those_of_numpy(form, given, heads):
    q, k, v, _ = arrays(2, 2, 300, kv_heads=1, d=3, e=5)
    fields = parameters(given, heads, m=70)
    for causal in (False, True):
        plain = LogLinear(*(None if x is None else x.detach().numpy() for x in fields))
        needed = protperf.favor_attention(q, k, v, None, feature_map=plain, causal=causal, backend="reference")
        inputs = [torch.from_numpy(x) for x in (q, k, v)]
        found = favor_attention(*inputs, None, feature_map=LogLinear(*fields), causal=causal)
        assert worst(found, needed) < 1e-10
        single = favor_attention(*(x.float() for x in inputs), None, feature_map=LogLinear(*fields), causal=causal)
        assert single.dtype == torch.float32
        assert worst(single, needed) < 1e-4


@pytest.mark.parametrize(
    ("given", "heads", "kind"),
    [("all", None, "packed"), ("all", 2, "causal"), ("quadratic", 2, "padded"), ("constants", None, "plain")],
)
def test_first_and_second_gradients(form, given, heads, kind):
    attention, leaves = case(given, heads, kind=kind)
    assert torch.autograd.gradcheck(attention, leaves, check_forward_ad=True)
    # Entry by entry, which takes seconds, where every parameter is given; all others along random directions.
    is_entry_by_entry = (form, given, kind) == ("native", "all", "packed")
    assert torch.autograd.gradgradcheck(attention, leaves, fast_mode=not is_entry_by_entry)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("kind", ["plain", "causal", "packed"])
def test_gradients_of_both_forms_agree_over_many_chunks(monkeypatch, given, kind):
    q, k, v, _ = tensors(1, 4, 600, kv_heads=2, d=5, e=6, scale=0.7)
    fields = parameters(given, 4, m=70, d=5)
    borders = {"cu_seqlens": torch.tensor([0, 0, 3, 290, 600])} if kind == "packed" else {}
    options = {"causal": kind != "plain", **borders}
    leaves = [x.requires_grad_() for x in (q, k, v)] + [x for x in fields if x is not None]
    found = {}
    for form in FORMS:
        monkeypatch.setenv("PROTPERF_TORCH_FORM", form)
        out = favor_attention(q, k, v, None, feature_map=LogLinear(*fields), **options)
        found[form] = torch.autograd.grad(out.square().sum(), leaves)
    for a, b in zip(found["native"], found["chunked"], strict=True):
        assert worst(a, b) < 1e-10 * max(1.0, b.abs().max().item())
        assert b.abs().max() > 1e-6


def test_directions_alone_are_the_positive_map_and_so_are_their_gradients(form):
    q, k, v, omega = tensors(1, 2, 70, requires_grad=True)
    omega.requires_grad_()
    results = []
    for options in ({"omega": omega}, {"omega": None, "feature_map": LogLinear(omega)}):
        out = favor_attention(q, k, v, causal=True, **options)
        results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v, omega))])
    assert all(worst(a, b) < 1e-12 for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("heads", [None, 2])
def test_a_sequence_in_parts_is_the_whole_and_its_gradient(form, heads):
    q, k, v, _ = tensors(1, 2, 50, d=3, e=4, scale=0.7, requires_grad=True)
    fields = parameters("all", heads)
    record, leaves = LogLinear(*fields), (q, k, v, *fields)
    state, parts = None, []
    for low, high in ((0, 17), (17, 18), (18, 50)):
        part = (x[:, :, low:high] for x in (q, k, v))
        out, state = favor_attention_with_state(*part, None, state, feature_map=record)
        parts.append(out)
    whole = favor_attention(q, k, v, None, feature_map=record, causal=True)
    assert worst(torch.cat(parts, 2), whole) < 1e-12
    in_parts = torch.autograd.grad(torch.cat(parts, 2).square().sum(), leaves)
    for a, b in zip(in_parts, torch.autograd.grad(whole.square().sum(), leaves), strict=True):
        assert worst(a, b) < 1e-9
    read, same = favor_attention_with_state(q, k[:, :, :0], v[:, :, :0], None, state, feature_map=record)
    assert worst(read, favor_attention(q, k, v, None, feature_map=record)) < 1e-10
    assert worst(same, state) < 1e-12


def test_gradients_through_states_in_and_out(form):
    q, k, v, _ = tensors(1, 1, 4, d=3, e=2, scale=0.7, requires_grad=True)
    fields = parameters()
    state = favor_attention_with_state(q, k, v, None, feature_map=LogLinear(*fields))[1].detach()

    def attention(q, k, v, sums, *fields):
        given = torch.cat([state[..., :1], sums], -1)
        out, after = favor_attention_with_state(q, k, v, None, given, feature_map=LogLinear(*fields))
        return out, after[..., 1:]

    leaves = (q, k, v, state[..., 1:].clone().requires_grad_(), *fields)
    assert torch.autograd.gradcheck(attention, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attention, leaves, fast_mode=True)


def test_transforms_of_torch_func_and_vmap():
    attention, leaves = case("all", kind="causal")
    given = [x.detach() for x in leaves]
    every = tuple(range(len(given)))
    loss = lambda *x: attention(*x).square().sum()  # noqa: E731
    found = torch.func.grad(loss, argnums=every)(*given)
    needed = torch.autograd.grad(loss(*leaves), leaves)
    assert all(worst(a, b) < 1e-12 for a, b in zip(found, needed, strict=True))
    many = [torch.stack([x, 0.5 * x]) for x in given]
    mapped = torch.func.vmap(attention)(*many)
    assert worst(mapped, torch.stack([attention(*(x[i] for x in many)) for i in range(2)])) < 1e-12
    # The Jacobian by reverse and forward mode, and its products with a vector on either side.
    rows = torch.func.jacrev(attention, argnums=every)(*given)
    columns = torch.func.jacfwd(attention, argnums=every)(*given)
    assert all(worst(a, b) < 1e-10 for a, b in zip(rows, columns, strict=True))
    out, pull_back = torch.func.vjp(attention, *given)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    needed = torch.autograd.grad(attention(*leaves), leaves, cotangent)
    assert all(worst(a, b) < 1e-12 for a, b in zip(pull_back(cotangent), needed, strict=True))
    tangents = tuple(torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in given)
    _, along = torch.func.jvp(attention, tuple(given), tangents)
    products = [(x * t).flatten(out.dim()).sum(-1) for x, t in zip(rows, tangents, strict=True)]
    assert worst(along, sum(products)) < 1e-10
    assert along.abs().max() > 1e-3


def test_compiles_into_one_graph_with_gradients():
    attention, leaves = case("all", kind="causal")
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for function in (compiled, attention):
        out = function(*leaves)
        grads = torch.autograd.grad(out.square().sum(), leaves)
        if function is compiled:
            first = (out, *grads)
    assert all(worst(a, b) == 0 for a, b in zip(first, (out, *grads), strict=True))


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(with_state):
    q, k, v, _ = tensors(1, 2, 6, d=3, e=2, requires_grad=True)
    state = favor_attention_with_state(q, k, v, None, feature_map=LogLinear(*parameters()))[1].detach()
    given = state.requires_grad_() if with_state else None
    arguments = (q, k, v, *parameters("all" if with_state else "quadratic"), given)
    options = (True, None, None, "auto")
    operators = torch.ops.protperf
    torch.library.opcheck(operators.log_linear.default, (*arguments, with_state, *options))
    arguments = tuple(None if x is None else x.detach() for x in arguments)
    found = operators.log_linear(*arguments, with_state, *options)
    grads = (torch.ones_like(found[0]), torch.ones_like(found[2]) if with_state else None)
    torch.library.opcheck(operators.log_linear_backward.default, (*grads, *arguments, *found, True, *options))


def test_meta_tensors_give_shapes():
    q, k, v, _ = (x.to("meta") for x in tensors(1, 2, 6, d=3, e=2))
    record = LogLinear(*(x.to("meta") for x in parameters(heads=2)))
    out, state = favor_attention_with_state(q, k, v, None, feature_map=record)
    assert (out.shape, state.shape) == ((1, 2, 6, 2), (1, 2, 4, 4))


def test_a_parameter_that_is_not_finite_is_nan_in_every_output_of_its_heads(form):
    q, k, v, _ = tensors(1, 2, 6, d=3)
    for field in range(5):
        changed = [x.detach().clone() for x in parameters(heads=2)]
        changed[field][1].view(-1)[0] = torch.inf
        out = favor_attention(q, k, v, None, feature_map=LogLinear(*changed))
        assert out[:, 1].isnan().all()
        assert out[:, 0].isfinite().all()


def test_parameters_that_need_no_gradient_get_none_and_the_others_theirs(form):
    q, k, v, _ = tensors(1, 2, 9, d=3)
    fields = parameters()
    fields[1] = fields[1].detach()
    favor_attention(q, k, v, None, feature_map=LogLinear(*fields)).square().sum().backward()
    assert fields[1].grad is None
    assert all(x.grad.abs().max() > 1e-6 for i, x in enumerate(fields) if i != 1)
    assert q.grad is None


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"omega": torch.ones(4, 3)}, errors.ConfigError, "omega cannot be given together with a LogLinear"),
        ({"kernel_epsilon": 0.1}, errors.ConfigError, "a LogLinear feature_map takes none"),
        ({"query_directions": None}, errors.DtypeError, "query_directions must be a torch tensor, not NoneType"),
        ({"query_directions": np.ones((4, 3))}, errors.DtypeError, "query_directions must be a torch tensor"),
        (
            {"query_directions": torch.ones(4, 2)},
            errors.ShapeError,
            "query_directions has 2 columns but q has",
        ),
        ({"query_directions": torch.ones(4)}, errors.ShapeError, r"query_directions has 1 axes"),
        ({"query_directions": torch.ones(0, 3)}, errors.ShapeError, "query_directions has no rows"),
        ({"query_directions": torch.ones(3, 4, 3)}, errors.ShapeError, "query_directions has 3 heads but q has 2"),
        (
            {"key_directions": torch.ones(5, 3)},
            errors.ShapeError,
            r"shape \[5, 3\], needed is \[4, 3\]",
        ),
        ({"key_quadratic": torch.ones(1, 3)}, errors.ShapeError, r"key_quadratic has shape \[1, 3\], needed is \[3\]"),
        ({"key_quadratic": torch.ones(3, 3)}, errors.ShapeError, "needed is"),
        ({"key_constants": torch.ones(3)}, errors.ShapeError, r"key_constants has shape \[3\], needed is \[4\]"),
        ({"query_constants": torch.ones(4, dtype=torch.int64)}, errors.DtypeError, "query_constants has type int64"),
        (
            {"query_constants": torch.ones(4, device="meta")},
            errors.DtypeError,
            "query_constants is on meta but q",
        ),
        ({"causal": "yes"}, errors.DtypeError, "causal must be True or False"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_arguments_that_cannot_be_are_refused(change, kind, message):
    q, k, v, _ = tensors(1, 2, 6, d=3)
    fields = dict(zip(LogLinear.__dataclass_fields__, parameters(), strict=True))
    options = {name: change[name] for name in change if name not in fields}
    record = LogLinear(**(fields | {name: value for name, value in change.items() if name in fields}))
    for function in (favor_attention, favor_attention_with_state):
        with pytest.raises(kind, match=message):
            function(q, k, v, **({"omega": None} | options), feature_map=record)


def test_a_state_of_another_map_is_refused():
    q, k, v, omega = tensors(1, 2, 6, d=3)
    _, state = favor_attention_with_state(q, k, v, omega)
    with pytest.raises(errors.ShapeError, match=r"state has shape \[1, 2, 16, 10\], needed is"):
        favor_attention_with_state(q, k, v, None, state, feature_map=LogLinear(*parameters()))
