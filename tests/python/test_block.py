"""The operators of a whole block and of a training's head, as torch sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from protperf.errors import ConfigError, ShapeError
from protperf.torch import BlockWeights, token_loss, transformer_block

# torch's own, where dual numbers and its compiler are first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
C, H, D, F, M = 6, 2, 4, 5, 3
BORDERS = (0, 3, 3, 8)


def tensors(attention: str = "elu1", dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    angles = random(BORDERS[-1], D // 2)
    weights = BlockWeights(
        1 + 0.1 * random(C),
        random(3 * H * D, C),
        0.1 * random(H),
        None if attention == "exact" else random(H, M, D),
        random(C, H * D),
        1 + 0.1 * random(C),
        random(2 * F, C),
        random(C, F),
    )
    return {
        "hidden": random(BORDERS[-1], C),
        "weights": weights,
        "rotary": (angles.cos(), angles.sin()),
        "cu_seqlens": torch.tensor(BORDERS),
    }


def run(given: dict[str, Any], attention: str = "elu1", causal: bool = True, dropout: float = 0.0) -> torch.Tensor:
    choices = {"num_heads": H, "attention": attention, "causal": causal, "dropout": dropout}
    return transformer_block(given["hidden"], given["weights"], given["rotary"], given["cu_seqlens"], **choices)


def leaves(given: dict[str, Any]) -> list[torch.Tensor]:
    """hidden and the weights but omega, each asking for its gradient."""
    found = [given["hidden"], *(x for name, x in given["weights"]._asdict().items() if name != "omega")]
    return [x.requires_grad_() for x in found]


@pytest.mark.parametrize(
    ("attention", "causal", "dropout"),
    [("elu1", True, 0.4), ("positive", False, 0.0), ("exact", True, 0.0), ("exact", False, 0.4)],
)
def test_gradcheck(attention: str, causal: bool, dropout: float) -> None:
    """What torch adds; `rust/protperf-model/tests/model/block_gradients.rs` has every combination."""
    given = tensors(attention)
    omega = given["weights"].omega

    def function(hidden: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(7)
        weights = BlockWeights(*rest[:3], omega, *rest[3:])
        return run({**given, "hidden": hidden, "weights": weights}, attention, causal, dropout)

    assert torch.autograd.gradcheck(function, leaves(given), nondet_tol=0.0)


def operator_case(name: str, is_kept: bool, precision: str = "f32") -> tuple[Any, ...]:
    """Arguments of an operator, leaves where it keeps what gradients need."""
    given = tensors(dtype=torch.float32)
    if name == "token_loss":
        floats = [given["hidden"], given["weights"].attention_norm, torch.randn(9, C)]
        rest: tuple[Any, ...] = (torch.tensor([0, 2, 7]), torch.tensor([8, 0, 3]), 0.5, precision, is_kept)
        return (*(x.requires_grad_(is_kept) for x in floats), *rest)
    if is_kept:
        leaves(given)
    key = torch.zeros((), dtype=torch.int64)
    tensors_of_call = (given["hidden"], *given["weights"], *given["rotary"], given["cu_seqlens"], key)
    options = (H, "elu1", True, 0.0, precision)
    if name == "block":
        return (*tensors_of_call, *options, is_kept)
    tensors_of_call = tuple(x.detach() for x in tensors_of_call)
    output, *trace = torch.ops.protperf.block(*tensors_of_call, *options, True)
    return (torch.ones_like(output), *tensors_of_call, trace, *options)


@pytest.mark.parametrize(
    ("name", "is_kept", "precision"),
    [
        ("block", True, "bf16"),
        ("block", False, "f32"),
        ("block_backward", True, "f32"),
        ("token_loss", True, "bf16"),
        ("token_loss", False, "f32"),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck(name: str, is_kept: bool, precision: str) -> None:
    operator = getattr(torch.ops.protperf, name).default
    torch.library.opcheck(operator, operator_case(name, is_kept, precision))


@pytest.mark.parametrize(("name", "option"), [("block", "is_traced"), ("token_loss", "with_gradients")])
def test_a_gradient_that_nothing_was_kept_for_is_refused(name: str, option: str) -> None:
    arguments = operator_case(name, True)
    found = getattr(torch.ops.protperf, name)(*arguments[:-1], False)
    with pytest.raises(RuntimeError, match=f"{name} was called with {option}=False"):
        found[0].sum().backward()


def test_dropout_is_drawn_from_the_generator_of_torch() -> None:
    given = tensors()
    torch.manual_seed(1)
    first, other = run(given, dropout=0.5), run(given, dropout=0.5)
    torch.manual_seed(1)
    assert torch.equal(first, run(given, dropout=0.5))
    assert not torch.equal(first, other)
    before = torch.get_rng_state()
    run(given)
    assert torch.equal(torch.get_rng_state(), before), "nothing is dropped, so nothing is drawn"


def test_a_checkpointed_block_drops_the_same_numbers_again() -> None:
    from torch.utils.checkpoint import checkpoint

    found = []
    for is_checkpointed in (False, True):
        given = tensors()
        wanted = leaves(given)
        torch.manual_seed(3)
        function = lambda hidden, given=given: run({**given, "hidden": hidden}, dropout=0.5)  # noqa: E731
        hidden = given["hidden"]
        output = checkpoint(function, hidden, use_reentrant=False) if is_checkpointed else function(hidden)
        output.square().sum().backward()
        found.append([output.detach(), *(x.grad for x in wanted)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_second_derivative_is_refused_and_names_the_form_that_has_it() -> None:
    given = tensors()
    wanted = leaves(given)
    (first,) = torch.autograd.grad(run(given).square().sum(), wanted[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="engine='torch'"):
        first.sum().backward()


def test_a_tangent_is_refused() -> None:
    given = tensors()
    with torch.autograd.forward_ad.dual_level():
        hidden = torch.autograd.forward_ad.make_dual(given["hidden"], torch.ones_like(given["hidden"]))
        with pytest.raises(RuntimeError, match="forward-mode derivative; compose the network in torch"):
            run({**given, "hidden": hidden})


def loss_case() -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor, float]]:
    arguments = operator_case("token_loss", True)
    return list(arguments[:3]), arguments[3:6]


def test_the_gradient_of_a_loss_is_not_a_constant_in_silence() -> None:
    wanted, rest = loss_case()
    first = torch.autograd.grad(token_loss(*wanted, *rest), wanted, create_graph=True)
    for once, again in zip(first, torch.autograd.grad(token_loss(*wanted, *rest), wanted), strict=True):
        assert torch.equal(once, again)
        with pytest.raises(RuntimeError, match="engine='torch'"):
            torch.autograd.grad(once.square().sum(), wanted, retain_graph=True)


@pytest.mark.parametrize("name", ["omega", "cosines", "sines"])
def test_a_gradient_that_the_block_has_not_is_refused_by_name(name: str) -> None:
    given = tensors()
    if name == "omega":
        given["weights"] = given["weights"]._replace(omega=given["weights"].omega.requires_grad_())
    else:
        at = ("cosines", "sines").index(name)
        given["rotary"] = tuple(x.requires_grad_() if i == at else x for i, x in enumerate(given["rotary"]))
    with pytest.raises(ConfigError, match=f"{'omega' if name == 'omega' else 'rotary'} needs a gradient"):
        run(given)
    with torch.no_grad():
        run(given)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap, torch.func.jacrev])
def test_transforms_of_torch_func_are_refused_by_name(transform: Any) -> None:
    given, (wanted, rest) = tensors(), loss_case()
    stacked = (lambda x: x.detach()[None]) if transform is torch.func.vmap else (lambda x: x.detach())
    with pytest.raises(ConfigError, match=r"transformer_block cannot be transformed .*engine='torch'"):
        transform(lambda hidden: run({**given, "hidden": hidden}).sum())(stacked(given["hidden"]))
    with pytest.raises(ConfigError, match=r"token_loss cannot be transformed .*engine='torch'"):
        transform(lambda hidden: token_loss(hidden, *wanted[1:], *rest))(stacked(wanted[0]))


def test_a_model_around_the_block_is_compiled_in_one_graph() -> None:
    given = tensors(dtype=torch.float32)
    weights = leaves(given)

    def model(hidden: torch.Tensor) -> torch.Tensor:
        return run({**given, "hidden": 2 * hidden}).tanh().sum()

    needed = torch.autograd.grad(model(given["hidden"]), weights)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(given["hidden"]), weights)
    for ours, theirs in zip(found, needed, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_views_and_gaps_are_read_as_they_are() -> None:
    given = tensors()
    needed = run(given)
    spread = torch.zeros(BORDERS[-1], 2 * C, dtype=torch.float64)
    spread[:, ::2] = given["hidden"]
    weights = given["weights"]._replace(qkv=given["weights"].qkv.t().contiguous().t())
    assert torch.equal(run({**given, "hidden": spread[:, ::2], "weights": weights}), needed)


def test_an_empty_batch_is_empty() -> None:
    given = tensors()
    given |= {"hidden": given["hidden"][:0], "cu_seqlens": torch.tensor([0])}
    given["rotary"] = tuple(x[:0] for x in given["rotary"])
    weights = leaves(given)
    output = run(given)
    assert output.shape == (0, C)
    assert all(not g.any() for g in torch.autograd.grad(output.sum(), weights))


@pytest.mark.parametrize("field", BlockWeights._fields)
def test_a_weight_of_another_size_is_refused_by_name(field: str) -> None:
    given = tensors()
    weights = given["weights"]._replace(**{field: torch.zeros(7, 11, dtype=torch.float64)})
    with pytest.raises((ShapeError, ConfigError)):
        run({**given, "weights": weights})


def test_a_map_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="relu"):
        run(tensors(), attention="sigmoid2")


def test_what_is_not_finite_is_not_hidden() -> None:
    given = tensors()
    given["hidden"][4, 2] = torch.nan
    output = run(given, causal=True)
    assert output[4:].isnan().all()
    assert output[:3].isfinite().all(), "another sequence"


def test_positions_of_a_loss_must_increase() -> None:
    given = tensors()
    norm, embedding = given["weights"].attention_norm, torch.randn(9, C, dtype=torch.float64)
    for positions in ([2, 2], [3, 1], [0, 8], [-1, 2]):
        with pytest.raises(ConfigError, match="positions"):
            token_loss(given["hidden"], norm, embedding, torch.tensor(positions), torch.tensor([0, 1]), 1.0)
