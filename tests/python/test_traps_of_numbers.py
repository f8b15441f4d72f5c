"""Numbers that other implementations of linear attention get wrong without a word; `docs/traps.md` lists whose.

Where it takes a few lines, the fault is computed next to ours, so that a test shows what it would find.
"""

import pytest
import torch
from attention_inputs import same_bits
from traps import D, M, directions, distance, estimate, log_features, normal, with_epsilon

import protperf
from protperf.torch import favor_attention, favor_attention_with_state, reference, softmax_attention
from protperf.torch.nn import FittedAttention, attention_core


def test_trap_an_epsilon_turns_attention_into_the_mean_of_v():
    q, k, v = normal()
    omega = directions()
    needed, mean = estimate(q, k, v, omega), v.double().mean(2, keepdim=True).expand_as(v)
    assert distance(with_epsilon(q, k, v, omega), needed) > 0.9
    assert distance(with_epsilon(q, k, v, omega), mean) < 0.15
    assert distance(favor_attention(q, k, v, omega), needed) < 1e-5


def test_trap_a_maximum_over_all_keys_lets_the_future_into_the_past():
    q, k, v = normal(0.5)
    omega, later = directions(), k.clone()
    later[..., -1, :] = omega[3].float() * D**0.25

    def change(attend):
        return distance(attend(q, later, v)[..., :-1, :], attend(q, k, v)[..., :-1, :])

    assert change(lambda q, k, v: with_epsilon(q, k, v, omega, causal=True)) > 0.1
    assert change(lambda q, k, v: favor_attention(q, k, v, omega, causal=True)) == 0


@pytest.mark.parametrize("scale", [1.25, 1.5, 4.0])
def test_trap_a_guarded_denominator_sends_output_and_gradient_to_zero(scale):
    q, k, v = normal(scale)
    omega = directions()

    def sizes(attend):
        x = q.clone().requires_grad_()
        out = attend(x, k, v, omega)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        return float(out.detach().norm() / v.norm()), float(gradient.norm())

    size, gradient = sizes(lambda *args: with_epsilon(*args, epsilon=1e-6, guard=2e-6))
    assert size < 1e-2
    assert gradient < 1
    size, gradient = sizes(favor_attention)
    assert size > 0.3
    assert gradient > 100
    assert distance(favor_attention(q, k, v, omega), estimate(q, k, v, omega)) < 1e-5


def test_trap_a_maximum_over_the_batch_mixes_sequences():
    q, k, v = normal(0.5, batch=2)
    omega, other = directions(), k.clone()
    other[1] = 30 * other[1].flip(1)
    before, after = (favor_attention(q, keys, v, omega) for keys in (k, other))
    assert same_bits(before[0], after[0])
    assert not same_bits(before[1], after[1])


@pytest.mark.parametrize("causal", [False, True])
def test_trap_padding_stays_in_the_denominator_and_in_the_maximum(causal):
    q, k, v = normal()
    omega, padding = directions(), torch.arange(128)[None] < 96
    # Padding on the left, whose content must not matter.
    hidden = padding[:, None, :, None]
    k, v = k.masked_fill(hidden, 1e4), v.masked_fill(hidden, torch.nan)
    out = favor_attention(q, k, v, omega, causal=causal, key_padding_mask=padding)[:, :, 96:]
    alone = favor_attention(*(x[:, :, 96:] for x in (q, k, v)), omega, causal=causal)
    assert distance(out, alone) < 1e-5


def test_trap_a_prefix_rebuilt_by_subtraction_loses_the_first_gradients():
    # Key features grow a thousandfold along the sequence.
    q, k, v = normal(0.3, length=2048, width=16)
    k = k.abs() * torch.logspace(0, 3, 2048)[:, None]
    omega = directions(32, 16).abs()

    def gradients(attend, dtype):
        inputs = [x.to(dtype).clone().requires_grad_() for x in (q, k, v)]
        first = attend(*inputs, omega, feature_map="relu", causal=True)[:, :, :64]
        return [x[:, :, :64] for x in torch.autograd.grad(first.square().sum(), inputs)]

    needed = gradients(reference.favor_attention, torch.float64)
    for found, plain, x in zip(
        gradients(favor_attention, torch.float32),
        gradients(reference.favor_attention, torch.float32),
        needed,
        strict=True,
    ):
        assert distance(found, x) < 2 * distance(plain, x) + 1e-6
    features = (k[0, 0] @ omega.float().T)[:, :, None] * v[0, 0][:, None]
    later = features.flip(0).cumsum(0).flip(0) - features
    prefix = features.double().cumsum(0)[:64]
    assert distance((features.sum(0) - later)[:64], prefix) > 100 * distance(features.cumsum(0)[:64], prefix)


def test_trap_a_sum_over_the_wrong_axis_loses_the_tokens():
    q, k, v = normal(0.5, length=4)
    omega, other = directions(), v.clone()
    other[:, :, 0] += 1
    before, after = (favor_attention(q, k, x, omega, causal=True) for x in (v, other))
    assert ((after - before)[:, :, 1] > 0.05).all()
    assert same_bits(favor_attention(q, k, v.flip(-1), omega, causal=True), before.flip(-1))


def test_trap_without_a_guard_large_inputs_are_nan():
    q, k, v = normal(8.0)
    omega = directions()
    assert distance(favor_attention(q, k, v, omega), estimate(q, k, v, omega)) < 1e-4
    a, b = (x.float() for x in log_features(30 * q, 30 * k, omega))
    weights = a.exp() @ b.exp().mT
    assert not (weights / weights.sum(-1, keepdim=True)).isfinite().all()
    out = favor_attention(30 * q, 30 * k, v, omega)
    assert out.isfinite().all()
    assert out.abs().max() <= v.abs().max() * (1 + 1e-6)


def test_trap_a_gradient_of_stride_zero_is_read_as_if_it_were_dense():
    q, k, v = (x.mT.contiguous().mT.requires_grad_() for x in normal(length=40))
    omega = directions()
    favor_attention(q, k, v, omega).sum().backward()
    dense = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = favor_attention(*dense, omega)
    out.backward(torch.ones_like(out).contiguous())
    assert all(same_bits(x.grad, y.grad) for x, y in zip((q, k, v), dense, strict=True))


def test_trap_features_driven_under_an_epsilon_shrink_the_output():
    q, k, v = normal(2.0)
    omega = directions()
    out = favor_attention(q, k, v, omega, causal=True)
    assert out.norm() > 0.1 * v.norm()
    larger = torch.cat([k[:, :, :-1], 3 * k[:, :, -1:]], 2)
    assert same_bits(favor_attention(q, larger, v, omega, causal=True)[:, :, :-1], out[:, :, :-1])


def test_trap_decoding_computes_another_function_than_training():
    q, k, v = normal(length=30, heads=3)
    omega, state, steps = directions(), None, []
    for i in range(30):
        step = (x[:, :, i : i + 1] for x in (q, k, v))
        out, state = favor_attention_with_state(*step, omega, state)
        steps.append(out)
    assert distance(torch.cat(steps, 2), favor_attention(q, k, v, omega, causal=True)) < 1e-5


def test_trap_decoding_computes_the_whole_prefix_for_every_token():
    q, k, v = normal(length=1)
    _, first = favor_attention_with_state(q, k, v, directions())
    _, state = favor_attention_with_state(*normal(length=2000), directions(), first)
    assert state.shape == first.shape == (1, 1, M, D + 2)


def test_trap_memory_of_a_square_or_of_every_prefix_is_kept_for_the_backward_pass():
    def saved(length):
        sizes = []
        q, k, v = (x.requires_grad_() for x in normal(length=length))
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            favor_attention(q, k, v, directions().float(), causal=True)
        return sum(sizes)

    # q, k, v, the output, and two numbers per row.
    per_row = 4 * (4 * D + 2)
    assert saved(2048) - saved(1024) == 1024 * per_row


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trap_sixteen_bits_are_also_those_of_features_and_sums(dtype):
    q, k, v = normal(0.5, length=1000, dtype=dtype)
    needed = favor_attention(q.double(), k.double(), v.double(), directions(), causal=True)
    out = favor_attention(q, k, v, directions(), causal=True, backend="cpu").double()
    rounding = torch.finfo(dtype).eps / 2
    assert ((out - needed).abs() <= rounding * needed.abs() + 1e-5).all()
    # Where a processor multiplies in bfloat16, sums are float32 all the same: the last rows are as good as the first.
    out = favor_attention(q, k, v, directions(), causal=True).double()
    first, last = (
        (out - needed)[:, :, rows].norm() / needed[:, :, rows].norm() for rows in (slice(500), slice(500, None))
    )
    assert max(first, last) < 0.008


def test_trap_logits_are_divided_by_the_width_of_the_model_and_not_of_a_head():
    q, k, v = normal(0.6, heads=8, width=16)
    needed = softmax_attention(q, k, v)
    omega = directions(4096, 16)
    assert distance(favor_attention(q, k, v, omega), needed) < 0.1
    wrong = 8**-0.25
    assert distance(favor_attention(wrong * q, wrong * k, v, omega), needed) > 0.2


def test_trap_constants_are_fitted_to_padding_and_inputs_are_scaled_twice():
    q, k, v = normal(0.6, width=16, dtype=torch.float64)
    core = FittedAttention(16, 8192, num_heads=1, feature_map="oprf", dtype=torch.float64)
    padding = torch.arange(128)[None] >= 100
    core.observe(q, k.masked_fill(padding[:, None, :, None], 1e3), key_padding_mask=padding)
    clean = FittedAttention(16, 8192, num_heads=1, feature_map="oprf", dtype=torch.float64)
    clean.observe(q, k.masked_fill(padding[:, None, :, None], 0.0), key_padding_mask=padding)
    assert all(torch.equal(a, b) for a, b in zip(core.moments(), clean.moments(), strict=True))
    # Inputs that were scaled twice would give almost the mean.
    assert distance(core(q, k, v), softmax_attention(q, k, v)) < 0.1


def test_trap_a_maximum_per_key_weighs_every_key_anew():
    q, k, v = normal(0.5)
    k = k * torch.linspace(0.2, 3, 128)[:, None]
    omega = directions()
    a, b = log_features(q, k, omega)
    weights = a.exp() @ (b - b.amax(-1, keepdim=True)).exp().mT
    wrong = weights / weights.sum(-1, keepdim=True) @ v.double()
    needed = estimate(q, k, v, omega)
    assert distance(wrong, needed) > 0.2
    assert distance(favor_attention(q, k, v, omega), needed) < 1e-5


@pytest.mark.parametrize("name", ["hyperbolic", "learned"])
def test_trap_features_of_both_signs_are_all_zero_for_negative_inputs(name):
    q, k, v = normal(dtype=torch.float64)
    core = attention_core(D, 1, feature_map=name, num_features=32).double()
    negative = core(-q.abs(), -k.abs(), v)
    assert distance(negative, v.mean(2, keepdim=True).expand_as(v)) > 0.05
    # Pairs of directions w and -w know no sign.
    assert distance(core(q.abs(), k.abs(), v), negative) < 1e-9


def test_trap_more_features_do_not_come_closer():
    q, k, v = normal(0.5, length=64, width=16)
    needed = softmax_attention(q, k, v)

    def error(num_features):
        found = (favor_attention(q, k, v, directions(num_features, 16, seed=seed)) for seed in range(8))
        return sum(distance(out, needed) ** 2 for out in found) ** 0.5

    # Sixteen times the features, a quarter of the error, within the scatter of eight draws.
    assert 2.5 < error(64) / error(1024) < 6.5


def test_trap_a_choice_of_map_is_overwritten():
    q, k, v = normal(0.5)
    outputs = [favor_attention(q, k, v, directions(), feature_map=name) for name in protperf.feature_maps()]
    assert all(distance(a, b) > 1e-3 for i, a in enumerate(outputs) for b in outputs[:i])
