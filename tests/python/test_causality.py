"""Causal means causal: no later row changes a bit of an earlier output, or of the gradient of an earlier loss."""

import numpy as np
import pytest
import torch
from attention_inputs import MAPS, arrays, tensors

import protperf
from protperf.torch import favor_attention, favor_attention_with_state, reference

LENGTH = 150
CHANGES = {"x2": 2.0, "x1000": 1000.0, "x1e30": 1e30, "nan": float("nan"), "inf": float("inf")}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("feature_map", MAPS)
def test_later_rows_change_no_bit_of_earlier_outputs_and_gradients(feature_map, change):
    for dtype in (torch.float32, torch.float64):
        q, k, v, omega = tensors(1, 2, LENGTH, scale=0.7, dtype=dtype)
        weight = torch.randn(1, 2, LENGTH, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
        for cut in (1, 31, 32, 64, 97, LENGTH - 1):
            results = []
            for factor in (1.0, CHANGES[change]):
                leaves = [torch.cat([x[:, :, :cut], x[:, :, cut:] * factor], 2).requires_grad_() for x in (q, k, v)]
                out = favor_attention(*leaves, omega, feature_map=feature_map, causal=True)[:, :, :cut]
                grads = torch.autograd.grad((out * weight[:, :, :cut]).sum(), leaves)
                results.append([out, *(g[:, :, :cut] for g in grads)])
            for name, a, b in zip(("out", "dq", "dk", "dv"), *results, strict=True):
                assert torch.equal(a, b), (name, cut, dtype)


@pytest.mark.parametrize("feature_map", MAPS)
def test_a_later_key_on_a_direction_of_omega_changes_no_bit(feature_map):
    """The case in which a stabilizer that looks ahead changes every earlier row."""
    q, k, v, omega = arrays(1, 1, LENGTH, d=16, m=32, scale=0.5, dtype=np.float32)
    clean = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=True)
    for size in (1.0, 10.0):
        k[0, 0, -1] = size * omega[3] * 16**0.25
        out = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=True)
        assert np.array_equal(out[:, :, :-1], clean[:, :, :-1])


@pytest.mark.parametrize("feature_map", MAPS)
def test_one_hot_values_change_by_less_than_their_bound(feature_map):
    q, k, _, omega = arrays(1, 2, 64, scale=0.7, dtype=np.float32)
    v = np.broadcast_to(np.eye(64, dtype=np.float32), (1, 2, 64, 64))
    clean = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=True)
    assert (np.triu(clean[0, 0], 1) == 0).all()
    for factor in (2.0, 1000.0, np.nan):
        q2, k2 = q.copy(), k.copy()
        q2[:, :, 40:] *= factor
        k2[:, :, 40:] *= factor
        out = protperf.favor_attention(q2, k2, v, omega, feature_map=feature_map, causal=True)
        assert np.abs(out[:, :, :40] - clean[:, :, :40]).max() <= 2.0**-60


@pytest.mark.parametrize("feature_map", MAPS)
def test_batch_mates_heads_and_segments_change_no_bit(feature_map):
    q, k, v, omega = arrays(3, 2, 70, scale=0.7, dtype=np.float32)
    for causal in (False, True):
        whole = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal)
        for b in range(3):
            alone = protperf.favor_attention(
                *(x[b : b + 1] for x in (q, k, v)), omega, feature_map=feature_map, causal=causal
            )
            assert np.array_equal(whole[b : b + 1], alone)
        for h in range(2):
            alone = protperf.favor_attention(
                *(x[:, h : h + 1] for x in (q, k, v)), omega, feature_map=feature_map, causal=causal
            )
            assert np.array_equal(whole[:, h : h + 1], alone)


@pytest.mark.parametrize("feature_map", MAPS)
def test_decoding_equals_the_full_pass(feature_map):
    q, k, v, omega = tensors(1, 2, 48, scale=0.5, dtype=torch.float32)
    wide = [x.double() for x in (q, k, v)]
    exact = reference.favor_attention(*wide, omega, feature_map=feature_map, causal=True)
    whole = favor_attention(q, k, v, omega, feature_map=feature_map, causal=True)
    state, rows = None, []
    for i in range(48):
        row = (x[:, :, i : i + 1] for x in (q, k, v))
        out, state = favor_attention_with_state(*row, omega, state, feature_map=feature_map)
        rows.append(out)
    decoded = torch.cat(rows, 2)
    bound = 1e-3 if feature_map == "trigonometric" else 1e-5
    assert (decoded - exact).abs().max() < bound
    assert (decoded - whole).abs().max() < bound
