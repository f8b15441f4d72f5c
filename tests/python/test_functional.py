"""NumPy in and out: values against the reference over pairs, types, special rows."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from attention_inputs import ACTIVATION, EXPONENTIAL, MAPS, arrays, worst

import protperf
from protperf.torch import reference

LENGTHS = (0, 1, 7, 8, 9, 63, 64, 65, 130)


def oracle(q, k, v, omega, **options):
    q, k, v, omega = (None if x is None else torch.from_numpy(np.asarray(x, np.float64)) for x in (q, k, v, omega))
    options = {
        name: torch.as_tensor(value) if isinstance(value, np.ndarray) else value for name, value in options.items()
    }
    return reference.favor_attention(q, k, v, omega, **options).numpy()


def test_importing_protperf_imports_neither_numpy_nor_torch():
    code = (
        "import sys, protperf; protperf.feature_maps(); protperf.build_info();"
        "sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numpy_attention_does_not_import_torch():
    code = (
        "import sys, numpy as np, protperf; x = np.ones((1, 1, 3, 4)); omega = protperf.draw_projection(5, 4);"
        "protperf.favor_attention(x, x, x, omega); protperf.softmax_attention(x, x, x);sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("causal", [False, True])
def test_reference_follows_the_published_formula(causal):
    """a = w.x, b = w.y - |y|^2/2, out = sum exp(a+b) v / sum exp(a+b), with x and y scaled by D^-1/4."""
    q, k, v, omega = arrays(1, 1, 20, d=6, e=5, m=9, seed=3)
    x, y = q[0, 0] * 6**-0.25, k[0, 0] * 6**-0.25
    needed = np.zeros((20, 5))
    for i in range(20):
        top = bottom = 0.0
        for j in range(i + 1 if causal else 20):
            weight = sum(math.exp(w @ x[i] + w @ y[j] - 0.5 * y[j] @ y[j]) for w in omega)
            top, bottom = top + weight * v[0, 0, j], bottom + weight
        needed[i] = top / bottom
    assert worst(oracle(q, k, v, omega, causal=causal)[0, 0], needed) < 1e-12


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", MAPS)
def test_float64_matches_the_reference_at_odd_lengths(feature_map, causal):
    scale = 0.5 if feature_map == "trigonometric" else 1.0
    for length in LENGTHS:
        q, k, v, omega = arrays(2, 2, length, d=5, e=7, m=11, scale=scale, seed=length)
        out = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal)
        # The denominator of the trigonometric map may come near 0, which magnifies rounding.
        bound = 1e-9 if feature_map == "trigonometric" else 1e-12
        assert out.shape == (2, 2, length, 7)
        assert worst(out, oracle(q, k, v, omega, feature_map=feature_map, causal=causal)) < bound, f"L{length}"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("feature_map", MAPS)
def test_float32_is_within_1e5_of_the_reference(feature_map, causal):
    scale = 0.5 if feature_map == "trigonometric" else 1.0
    q, k, v, omega = arrays(1, 2, 193, d=64, e=64, m=256, scale=scale, dtype=np.float32)
    out = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal)
    assert out.dtype == np.float32
    assert worst(out, oracle(q, k, v, omega, feature_map=feature_map, causal=causal)) < 1e-5


@pytest.mark.parametrize("isa", protperf.build_info()["isas"])
@pytest.mark.parametrize("feature_map", MAPS)
def test_every_isa_matches_the_reference(monkeypatch, isa, feature_map):
    monkeypatch.setenv("PROTPERF_ISA", isa)
    for d, e, m in ((1, 1, 1), (3, 17, 5), (17, 4, 33), (33, 31, 63), (65, 64, 17)):
        q, k, v, omega = arrays(1, 2, 37, d=d, e=e, m=m, scale=0.5, seed=d)
        for causal in (False, True):
            out = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal)
            needed = oracle(q, k, v, omega, feature_map=feature_map, causal=causal)
            bound = 1e-7 if feature_map == "trigonometric" else 1e-12
            assert worst(out, needed) < bound * max(1.0, np.abs(needed).max()), (d, e, m, causal)


@pytest.mark.parametrize("feature_map", MAPS)
def test_float16_is_computed_in_float32_and_rounded_once(feature_map):
    for case in range(3):
        q, k, v, omega = arrays(1, 2, 70, scale=0.5, dtype=np.float16)
        if case == 1:
            q, k = np.asfortranarray(q), k[:, :, ::-1]
        if case == 2:
            q, v = q.astype(q.dtype.newbyteorder()), np.repeat(v, 2, -1)[..., ::2]
        wide = protperf.favor_attention(*(x.astype(np.float32) for x in (q, k, v)), omega, feature_map=feature_map)
        out = protperf.favor_attention(q, k, v, omega, feature_map=feature_map)
        assert out.dtype == q.dtype
        assert np.array_equal(out, wide.astype(np.float16))
        exact = protperf.softmax_attention(q, k, v)
        assert worst(exact, protperf.softmax_attention(*(x.astype(np.float64) for x in (q, k, v)))) < 2**-11


def test_a_number_of_omega_that_is_not_finite_is_nan_in_every_output():
    q, k, v, omega = arrays(1, 2, 30)
    for feature_map, bad in itertools.product(MAPS, (np.nan, np.inf, -np.inf)):
        broken = omega.copy()
        broken[3, 2] = bad
        assert np.isnan(protperf.favor_attention(q, k, v, broken, feature_map=feature_map)).all(), feature_map


@pytest.mark.parametrize("feature_map", ACTIVATION)
def test_activation_maps_work_without_projection(feature_map):
    q, k, v, _ = arrays(1, 2, 40)
    for kernel_epsilon in (None, 0.0, 0.25):
        out = protperf.favor_attention(q, k, v, None, feature_map=feature_map, kernel_epsilon=kernel_epsilon)
        needed = oracle(q, k, v, None, feature_map=feature_map, kernel_epsilon=kernel_epsilon)
        assert worst(out, needed) < 1e-12


@pytest.mark.parametrize("feature_map", MAPS)
def test_packed_segments_equal_separate_calls(feature_map):
    q, k, v, omega = arrays(1, 2, 50, scale=0.5)
    borders = np.array([0, 0, 13, 14, 14, 50])
    for causal in (False, True):
        packed = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal, cu_seqlens=borders)
        for a, b in itertools.pairwise(borders):
            alone = protperf.favor_attention(
                q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], omega, feature_map=feature_map, causal=causal
            )
            assert np.array_equal(packed[:, :, a:b], alone)


@pytest.mark.parametrize("feature_map", MAPS)
def test_padding_of_any_content_is_ignored(feature_map):
    q, k, v, omega = arrays(2, 2, 30, scale=0.5)
    mask = np.zeros((2, 30), bool)
    mask[0, 20:], mask[1, :4] = True, True
    for causal in (False, True):
        options = {"feature_map": feature_map, "causal": causal, "key_padding_mask": mask}
        first = protperf.favor_attention(q, k, v, omega, **options)
        assert worst(first, oracle(q, k, v, omega, **options)) < 1e-9
        k2, v2 = k.copy(), v.copy()
        k2.swapaxes(1, 2)[mask], v2.swapaxes(1, 2)[mask] = 1e30, np.nan
        assert np.array_equal(first, protperf.favor_attention(q, k2, v2, omega, **options))


@pytest.mark.parametrize("attention", ["favor", "softmax"])
def test_a_row_that_sees_no_key_gives_zero(attention):
    q, k, v, omega = arrays(2, 2, 5)
    mask = np.zeros((2, 5), bool)
    mask[0], mask[1, 0] = True, True
    if attention == "favor":
        out = protperf.favor_attention(q, k, v, omega, causal=True, key_padding_mask=mask)
    else:
        out = protperf.softmax_attention(q, k, v, causal=True, key_padding_mask=mask)
    assert (out[0] == 0).all()
    assert (out[1, :, 0] == 0).all()
    assert (out[1, :, 1:] != 0).all()
    none = protperf.favor_attention(q, k[:, :, :0], v[:, :, :0], omega)
    assert none.shape == v.shape
    assert (none == 0).all()


def test_grouped_queries_and_cross_attention():
    q, k, v, omega = arrays(2, 6, 17, 29, kv_heads=2)
    out = protperf.favor_attention(q, k, v, omega)
    assert worst(out, oracle(q, k, v, omega)) < 1e-12
    per_head = np.stack([protperf.draw_projection(16, 8, stream=(0, h, 0)) for h in range(6)])
    assert worst(protperf.favor_attention(q, k, v, per_head), oracle(q, k, v, per_head)) < 1e-12


def test_softmax_attention_is_torchs_own():
    q, k, v, _ = arrays(2, 4, 21, kv_heads=2, e=5)
    k4, v4 = np.repeat(k, 2, 1), np.repeat(v, 2, 1)
    for causal in (False, True):
        needed = torch.nn.functional.scaled_dot_product_attention(
            *(torch.from_numpy(x) for x in (q, k4, v4)), is_causal=causal
        )
        assert worst(protperf.softmax_attention(q, k, v, causal=causal), needed) < 1e-12


def test_more_features_come_closer_to_softmax():
    q, k, v, _ = arrays(1, 4, 64, d=16, e=16, scale=0.4)
    exact = protperf.softmax_attention(q, k, v)

    def error(m):
        draws = [protperf.draw_projection(m, 16, seed=seed) for seed in range(8)]
        return np.mean([np.linalg.norm(protperf.favor_attention(q, k, v, o) - exact) for o in draws])

    coarse, fine = error(32), error(2048)
    assert fine < 0.25 * coarse
    assert fine < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", ">f8"])
def test_result_has_the_type_of_q(dtype):
    q, k, v, omega = (x.astype(dtype) for x in arrays(1, 2, 12))
    out = protperf.favor_attention(q, k, v, omega, causal=True)
    assert out.dtype == np.dtype(dtype)
    assert worst(out, oracle(q, k, v, omega, causal=True)) < (2e-3 if out.itemsize == 2 else 1e-6)


@pytest.mark.parametrize("feature_map", EXPONENTIAL)
@pytest.mark.parametrize("norm", [1e-30, 1e-4, 1e2, 1e4, 1e18, 3e38])
def test_any_finite_input_gives_a_mean_of_v(feature_map, norm):
    q, k, v, omega = arrays(1, 2, 70, dtype=np.float32)
    unit = np.float32(norm)
    q, k = (x / np.abs(x).max() * unit for x in (q, k))
    for causal in (False, True):
        out = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal)
        slack = 8 * np.finfo(np.float32).eps * np.abs(v).max()
        assert np.isfinite(out).all()
        assert (out <= v.max(2, keepdims=True) + slack).all()
        assert (out >= v.min(2, keepdims=True) - slack).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("feature_map", MAPS)
def test_a_row_that_is_not_finite_poisons_only_who_sees_it(feature_map, where, bad):
    q, k, v, omega = arrays(2, 2, 40, scale=0.5)
    clean = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=True)
    {"q": q, "k": k, "v": v}[where][0, 1, 17, 2] = bad
    out = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, causal=True)
    reached = np.zeros((2, 2, 40), bool)
    reached[0, 1, 17 : 18 if where == "q" else None] = True
    assert np.isnan(out[reached]).all()
    assert np.array_equal(out[~reached], clean[~reached])
    whole = protperf.favor_attention(q, k, v, omega, feature_map=feature_map)
    reached[0, 1, : 17 if where != "q" else 0] = True
    assert np.array_equal(np.isnan(whole).all(-1), reached)
    assert np.array_equal(np.isnan(whole).any(-1), reached)


def test_projections_have_golden_values_and_follow_the_stream():
    omega = protperf.draw_projection(5, 4, seed=7, stream=(1, 2, 3))
    assert omega.shape == (5, 4)
    assert omega.dtype == np.float64
    assert np.array_equal(omega, protperf.draw_projection(5, 4, seed=7, stream=(1, 2, 3)))
    for other in ({"seed": 8}, {"stream": (0, 2, 3)}, {"stream": (1, 0, 3)}, {"stream": (1, 2, 0)}):
        assert not np.array_equal(omega, protperf.draw_projection(5, 4, **({"seed": 7, "stream": (1, 2, 3)} | other)))


def test_orthogonal_blocks_are_orthogonal_and_norms_are_as_asked():
    omega = protperf.draw_projection(20, 8, norm="sqrt_dim")
    assert np.allclose((omega**2).sum(1), 8)
    for lo in (0, 8, 16):
        block = omega[lo : lo + 8]
        gram = block @ block.T
        assert worst(gram, np.diag(np.diag(gram))) < 1e-12
    iid = protperf.draw_projection(4000, 8, sampler="iid")
    assert abs((iid**2).sum(1).mean() - 8) < 5 * math.sqrt(16 / 4000)
