"""Exponential maps with constants fitted to their inputs: unbiased, better, and causal bit for bit."""

import copy
import math

import pytest
import torch
from attention_inputs import same_bits, tensors, worst

import protperf
from protperf.torch import favor_attention, softmax_attention
from protperf.torch.fitting import FITTED_MAPS, Moments, apply_rotation, fit, moments, shifted
from protperf.torch.nn import FittedAttention

BIASED = "smreg"


def inputs(means=0.0, size=1.0, axes=None, *, length=128, d=64, seed=0):
    """Float64 q, k, v [1,1,L,D]: scaled rows with E|x|^2 = size around means of a given norm, axes of k weighted."""
    gen = torch.Generator().manual_seed(seed)
    q, k, v, at = (torch.randn(length, d, generator=gen, dtype=torch.float64) for _ in range(4))
    at = means * at[:2] / at[:2].norm(dim=1, keepdim=True)
    q, k = q * math.sqrt(size / d), k * math.sqrt(size / d)
    if axes is not None:
        q, k = q / axes, k * axes
    return tuple(x[None, None] for x in ((q + at[0]) * d**0.25, (k + at[1]) * d**0.25, v))


def omegas(count, m=256, d=64):
    return [torch.from_numpy(protperf.draw_projection(m, d, seed=7, stream=(0, 0, i))) for i in range(count)]


def attend(feature_map, omega, q, k, v, *, shift):
    fitted = fit(feature_map, omega, moments(q, k), shift=shift)
    q, k = (apply_rotation(x, fitted.rotation) for x in (q, k))
    return favor_attention(q, k, v, None, feature_map=fitted.record)


def mean_error(feature_map, data, *, shift, draws=4):
    """The relative error of the output against softmax, over draws of omega."""
    needed = softmax_attention(*data)
    errors = [(attend(feature_map, w, *data, shift=shift) - needed).norm() / needed.norm() for w in omegas(draws)]
    return float(sum(errors) / draws)


def test_the_shift_takes_an_error_of_78_percent_to_12():
    data = [inputs(means=3.0, seed=seed) for seed in range(3)]
    plain = sum(mean_error("positive", x, shift=False) for x in data) / 3
    shift = sum(mean_error("positive", x, shift=True) for x in data) / 3
    assert 0.6 < plain < 1.0
    assert shift < 0.15


def test_axes_of_unlike_size_need_saderf():
    # One side large where the other is small: |x| |y| is far above x.y.
    axes = torch.linspace(-1.5, 1.5, 64, dtype=torch.float64).exp()
    data = inputs(size=0.5, axes=axes)
    plain, oprf = (mean_error(name, data, shift=False) for name in ("positive", "oprf"))
    for name in ("saderf", "aderf"):
        assert mean_error(name, data, shift=False) < 0.5 * min(plain, oprf), name


def test_a_subspace_needs_aderf():
    """As above, on axes that no coordinate shows."""
    axes = torch.linspace(-1.5, 1.5, 64, dtype=torch.float64).exp()
    q, k, v = inputs(size=0.5, axes=axes)
    gen = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=gen, dtype=torch.float64)).Q
    data = (q @ turn, k @ turn, v)
    assert mean_error("aderf", data, shift=False) < 0.5 * mean_error("saderf", data, shift=False)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("feature_map", [name for name in FITTED_MAPS if name != BIASED])
def test_fitted_maps_are_unbiased(feature_map, shift):
    """Sums of features over many directions are exp(x.y), but for a factor of the query."""
    q, k, _ = inputs(means=0.5, size=0.5, length=6, d=4)
    omega = torch.from_numpy(protperf.draw_projection(150_000, 4, seed=1))
    fitted = fit(feature_map, omega, moments(q, k), shift=shift)
    x, y = (apply_rotation(rows[0], fitted.rotation) * 4**-0.25 for rows in (q, k))
    wq, wk, g, cq, ck = fitted.record.as_tuple()
    a = x @ wq.mT + (0 if cq is None else cq)
    b = y @ (wq if wk is None else wk).mT + (0 if ck is None else ck)
    b = b - 0.5 * (y * y if g is None else g * y * y).sum(-1, keepdim=True)
    found, needed = a.exp() @ b.exp().mT, (x @ y.mT).exp()
    found, needed = (p / p.sum(-1, keepdim=True) for p in (found, needed))
    assert (found / needed - 1).abs().max() < 0.03


def test_the_shift_of_a_map_is_the_map_of_shifted_inputs():
    q, k, v, omega = tensors(1, 2, 9, d=5, e=3)
    d = 5**0.25
    record = fit("saderf", omega, moments(q, k), shift=False).record
    means = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = favor_attention(q, k, v, None, feature_map=shifted(record, *means))
    # exp(mean . y) is a weight of the key: here one more axis, on which queries are 1 and keys carry the weight.
    a = (q - means[0] * d) * 5**-0.25 @ record.query_directions.mT + record.query_constants[:, None]
    y = (k - means[1] * d) * 5**-0.25
    b = y @ record.key_directions.mT + record.key_constants[:, None]
    b = b - 0.5 * (record.key_quadratic[:, None] * y * y).sum(-1, keepdim=True)
    b = b + (k * 5**-0.25) @ means[0][:, None]
    scores = torch.logsumexp(a[:, :, :, None] + b[:, :, None], -1).softmax(-1)
    assert worst(found, scores @ v) < 1e-12


@pytest.mark.parametrize("feature_map", FITTED_MAPS)
def test_moments_of_zero_are_the_map_without_constants(feature_map):
    q, k, v, omega = tensors(1, 2, 9, d=8)
    zero = Moments(*(torch.zeros(2, *[8] * n) for n in (1, 1, 2, 2)))
    record, rotation = fit(feature_map, omega, zero)
    name = feature_map if feature_map in protperf.feature_maps() else "positive"
    found = favor_attention(*(apply_rotation(x, rotation) for x in (q, k)), v, None, feature_map=record)
    assert worst(found, favor_attention(q, k, v, omega, feature_map=name)) < 1e-12


def test_padding_is_left_out_of_moments():
    q, k, _, _ = tensors(2, 4, 7, kv_heads=2, d=3)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[:, 5:] = True
    for a, b in zip(moments(q, k, key_padding_mask=mask), moments(q[:, :, :5], k[:, :, :5]), strict=True):
        assert a.shape[0] == 4
        assert worst(a, b) < 1e-14
    with pytest.raises(protperf.Error, match="no position"):
        moments(q, k, key_padding_mask=torch.ones(2, 7, dtype=torch.bool))


@pytest.mark.parametrize("feature_map", ["oprf", "aderf"])
def test_later_rows_change_no_bit_of_causal_output(feature_map):
    q, k, v, _ = tensors(1, 2, 70, d=8, dtype=torch.float32)
    module = FittedAttention(8, 16, num_heads=2, feature_map=feature_map, causal=True)
    module.observe(q, k)
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, :, 40:] *= 5
    assert same_bits(module(q, k, v)[:, :, :40], module(*changed)[:, :, :40])


def test_observing_is_the_only_thing_that_changes_the_constants():
    q, k, v, _ = tensors(1, 2, 20, d=8, dtype=torch.float32)
    module = FittedAttention(8, 16, num_heads=2, feature_map="saderf")
    before = module(q, k, v)
    assert same_bits(module(q, k, v), before)
    module.observe(q, 3 * k)
    after = module(q, k, v)
    assert worst(before, after) > 1e-4
    assert all(worst(a, b) < 1e-6 for a, b in zip(module.moments(), moments(q, 3 * k), strict=True))


def test_constants_are_saved_loaded_and_follow_omega():
    q, k, v, _ = tensors(1, 2, 20, d=8, dtype=torch.float32)
    first, second = (FittedAttention(8, 16, num_heads=2, feature_map="sderf", seed=seed) for seed in (1, 2))
    for scale in (1, 2):
        first.observe(scale * q, k)
    first.redraw(3)
    assert not any(parameter.requires_grad for parameter in first.parameters())
    second(q, k, v)
    second.load_state_dict(first.state_dict())
    assert same_bits(second(q, k, v), first(q, k, v))
    assert same_bits(copy.deepcopy(first)(q, k, v), first(q, k, v))
    out = first(q, k, v)
    first.redraw(4)
    assert worst(first(q, k, v), out) > 1e-4


def test_parts_with_a_state_are_the_whole():
    q, k, v, _ = tensors(1, 2, 20, d=8)
    module = FittedAttention(8, 16, feature_map="aderf", causal=True).double()
    module.observe(q, k)
    whole = module(q, k, v)
    first, state = module.with_state(*(x[:, :, :13] for x in (q, k, v)))
    last, _ = module.with_state(*(x[:, :, 13:] for x in (q, k, v)), state)
    assert worst(torch.cat([first, last], 2), whole) < 1e-12


@pytest.mark.parametrize("num_heads", [None, 4])
@pytest.mark.parametrize("feature_map", FITTED_MAPS)
def test_query_heads_share_keys(feature_map, num_heads):
    q, k, v, _ = tensors(2, 4, 20, kv_heads=2, d=8)
    module = FittedAttention(8, 16, num_heads=num_heads, feature_map=feature_map).double()
    module.observe(q, k)
    repeated = [x.repeat_interleave(2, 1) for x in (k, v)]
    assert worst(module(q, k, v), module(q, *repeated)) < 1e-12
    assert worst(module.with_state(q, k, v)[0], module.with_state(q, *repeated)[0]) < 1e-12


def test_a_module_made_in_inference_mode_works():
    q, k, v, _ = tensors(1, 2, 20, d=8, dtype=torch.float32)
    outs = []
    for inference in (True, False):
        with torch.inference_mode(inference):
            module = FittedAttention(8, 16, num_heads=2)
            module.observe(q, k)
        outs.append(module(q, k, v))
    assert worst(*outs) < 1e-6


def test_gradients_reach_queries_and_keys():
    q, k, v, _ = tensors(1, 1, 7, d=3, requires_grad=True)
    module = FittedAttention(3, 5, feature_map="aderf").double()
    module.observe(q, k)
    assert torch.autograd.gradcheck(module, (q, k, v))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"feature_map": "relu"}, "relu"), ({"momentum": 1.0}, "momentum"), ({"shift": "yes"}, "shift")],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(protperf.Error, match=message):
        FittedAttention(8, **arguments)
