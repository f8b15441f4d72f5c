"""Features with learned directions: their definition, their gradients, parts with a state."""

import pytest
import torch
from attention_inputs import same_bits, tensors, worst

from protperf.errors import ShapeError
from protperf.torch.nn import FittedAttention, LearnedAttention


def by_definition(module, q, k, v, causal):
    """Softmax features over all pairs."""
    w = torch.cat([module.weight, -module.weight], -2)
    a, b = (((x * x.shape[-1] ** -0.25) @ w.mT).softmax(-1) for x in (q, k))
    scores = a @ b.mT
    scores = scores.tril() if causal else scores
    return scores / scores.sum(-1, keepdim=True) @ v


@pytest.mark.parametrize("causal", [False, True])
def test_values_and_gradients_are_those_of_the_definition(causal):
    q, k, v, _ = tensors(2, 2, 20, d=5, e=3, scale=2.0, requires_grad=True)
    module = LearnedAttention(5, 6, num_heads=2, causal=causal).double()
    found, needed = module(q, k, v), by_definition(module, q, k, v, causal)
    assert worst(found, needed) < 1e-12
    leaves = (q, k, v, module.weight)
    grads = (torch.autograd.grad(out.square().sum(), leaves) for out in (found, needed))
    assert all(worst(a, b) < 1e-10 for a, b in zip(*grads, strict=True))


def test_parts_with_a_state_are_the_whole_and_the_future_changes_no_bit():
    q, k, v, _ = tensors(1, 2, 70, d=5, dtype=torch.float32)
    module = LearnedAttention(5, 6, num_heads=2, causal=True)
    whole = module(q, k, v)
    changed = [torch.cat([x[:, :, :40], 5 * x[:, :, 40:]], 2) for x in (q, k, v)]
    assert same_bits(module(*changed)[:, :, :40], whole[:, :, :40])
    first, state = module.with_state(*(x[:, :, :33] for x in (q, k, v)))
    last, _ = module.with_state(*(x[:, :, 33:] for x in (q, k, v)), state)
    assert worst(torch.cat([first, last], 2), whole) < 1e-5


def test_query_heads_share_keys_and_have_their_own_features_of_them():
    q, k, v, _ = tensors(2, 4, 20, kv_heads=2, d=5, e=3, requires_grad=True)
    module = LearnedAttention(5, 6, num_heads=4).double()
    leaves = (q, k, v, module.weight)
    repeated = [x.repeat_interleave(2, 1) for x in (k, v)]
    found, needed = module(q, k, v), by_definition(module, q, *repeated, False)
    assert worst(found, needed) < 1e-12
    grads = (torch.autograd.grad(out.square().sum(), leaves) for out in (found, needed))
    assert all(worst(a, b) < 1e-10 for a, b in zip(*grads, strict=True))
    causal = module(q, k, v, causal=True)
    first, state = module.with_state(*(x[:, :, :13] for x in (q, k, v)))
    last, _ = module.with_state(*(x[:, :, 13:] for x in (q, k, v)), state)
    assert worst(torch.cat([first, last], 2), causal) < 1e-12


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 3, 5, 5), (1, 3, 5, 5)), "q has 3 heads but the module 4"),
        (((1, 4, 5, 5), (1, 3, 5, 5)), "q has 4 heads, not a multiple of the 3 heads of k"),
        (((1, 4, 5, 6), (1, 4, 5, 6)), "q has head_dim 6 but the module 5"),
        (((1, 4, 5, 5), (1, 4, 5)), "k has 3 axes"),
    ],
    ids=range(4),
)
def test_shapes_that_do_not_fit_are_named(shapes, message):
    q, k = (torch.zeros(shape) for shape in shapes)
    for module in (LearnedAttention(5, 6, num_heads=4), FittedAttention(5, 6, num_heads=4, feature_map="aderf")):
        for call in (module, module.with_state):
            with pytest.raises(ShapeError, match=message):
                call(q, k, k)


def test_training_brings_the_kernel_closer_to_softmax():
    q, k, v, _ = tensors(1, 1, 64, d=4, dtype=torch.float32)
    module = LearnedAttention(4, 8, num_heads=1)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    losses = []
    for _ in range(30):
        loss = (module(q, k, v) - exact).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
