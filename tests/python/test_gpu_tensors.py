"""Tensors that stay on the GPU: the results of the host's, no hidden trips, memory given back, and what is refused."""

import copy
import gc
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from attention_inputs import arrays

import protperf
from protperf import LogLinear, errors, gpu

pytestmark = [
    pytest.mark.skipif("wgpu" not in protperf.backends(), reason="built without the feature wgpu"),
    pytest.mark.usefixtures("gpu_device"),
]


def on_gpu(*tensors, dtype=None):
    return [gpu.upload(x, dtype=dtype) for x in tensors]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_bits_are_those_of_arrays_on_the_host(dtype):
    q, k, v, omega = arrays(2, 4, 70, kv_heads=2, scale=0.5, dtype=dtype)
    padding = np.arange(140).reshape(2, 70) % 5 == 0
    for options in ({}, {"causal": True, "key_padding_mask": padding}, {"feature_map": LogLinear(omega)}):
        directions = None if "feature_map" in options else omega
        found = gpu.favor_attention(*on_gpu(q, k, v), directions, **options)
        assert (found.shape, found.dtype, found.nbytes) == (q.shape[:3] + v.shape[3:], dtype, found.numpy().nbytes)
        expected = protperf.favor_attention(q, k, v, directions, backend="wgpu", **options)
        np.testing.assert_array_equal(found.numpy(), expected)


def test_two_halves_through_a_state_and_queries_alone_are_the_whole():
    q, k, v, omega = arrays(1, 2, 80, scale=0.5, dtype=np.float32)
    halves = [on_gpu(*(x[:, :, rows] for x in (q, k, v))) for rows in (slice(33), slice(33, 80))]
    first, state = gpu.favor_attention_with_state(*halves[0], omega)
    second, last = gpu.favor_attention_with_state(*halves[1], omega, state)
    whole = protperf.favor_attention(q, k, v, omega, causal=True)
    assert np.abs(np.concatenate([first.numpy(), second.numpy()], 2) - whole).max() < 1e-5
    nothing = on_gpu(k[:, :, :0], v[:, :, :0])
    alone, after = gpu.favor_attention_with_state(gpu.upload(q), *nothing, omega, last)
    assert np.abs(alone.numpy() - protperf.favor_attention(q, k, v, omega)).max() < 1e-5
    np.testing.assert_array_equal(after.numpy(), last.numpy())


def test_states_of_parts_merge_to_that_of_the_whole_with_the_bits_of_the_host():
    q, k, v, omega = arrays(2, 3, 90, scale=0.5, dtype=np.float32)
    parts = [slice(0, 20), slice(20, 65), slice(65, 90)]
    a, b, c = (gpu.favor_attention_with_state(*on_gpu(*(x[:, :, rows] for x in (q, k, v))), omega)[1] for rows in parts)
    merged = gpu.merge_states(gpu.merge_states(a, b), c)
    assert (merged.shape, merged.dtype) == (a.shape, np.float32)
    found, _ = gpu.favor_attention_with_state(gpu.upload(q), *on_gpu(k[:, :, :0], v[:, :, :0]), omega, merged)
    assert np.abs(found.numpy() - protperf.favor_attention(q, k, v, omega)).max() < 1e-5
    np.testing.assert_array_equal(gpu.merge_states(a, b).numpy(), merged_on_host(a.numpy(), b.numpy()))


def merged_on_host(a, b):
    torch = pytest.importorskip("torch")
    from protperf.torch import merge_states

    return merge_states(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def test_states_of_any_numbers_merge_as_on_the_host():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2, 1, 50, 5), dtype=np.float32) for _ in range(2))
    for state in (a, b):
        state[..., 0] = rng.integers(-200, 200, (2, 1, 50))
        state[:, :, :5] = (-1e37, 0, 0, 0, 0)
    a[0, 0, 5], b[0, 0, 6] = np.nan, np.nan
    a[0, 0, 7], b[0, 0, 7] = (3, 1e38, -3e38, 3.4e38, 1), (3, 1e38, -3e38, 1, 3.4e38)
    a[0, 0, 8] = b[0, 0, 8] = (0, 1, -0.0, 0.0, 2e-38)
    expected = merged_on_host(a, b)
    found = gpu.merge_states(*on_gpu(a, b)).numpy()
    assert np.isinf(expected).any()
    np.testing.assert_array_equal(found[..., 1:], expected[..., 1:])
    is_finite = np.isfinite(a[..., 0] + b[..., 0])
    np.testing.assert_array_equal(found[..., 0][is_finite], expected[..., 0][is_finite])


@pytest.mark.parametrize(
    ("shape", "other", "message"),
    [
        ((1, 2, 3), (1, 2, 3), "a has [1, 2, 3] where a state [B,H,F,2+E] is needed"),
        ((1, 1, 2, 1), (1, 1, 2, 1), "a has [1, 1, 2, 1] where the last axis of a state is 2 + value_dim"),
        ((1, 1, 2, 5), (1, 1, 3, 5), "b has [1, 1, 3, 5] where [1, 1, 2, 5] is needed"),
    ],
)
def test_only_states_of_one_shape_are_merged(shape, other, message):
    with pytest.raises(errors.ShapeError, match=re.escape(message)):
        gpu.merge_states(*on_gpu(np.zeros(shape, np.float32), np.zeros(other, np.float32)))


def test_states_of_another_type_or_on_the_host_are_not_merged():
    state = np.zeros((1, 1, 2, 5), np.float32)
    with pytest.raises(errors.ConfigError, match="b is float16 where float32 is needed"):
        gpu.merge_states(gpu.upload(state), gpu.upload(state, dtype="float16"))
    with pytest.raises(errors.DtypeError, match="b of type ndarray is not on the GPU"):
        gpu.merge_states(gpu.upload(state), state)


def test_nothing_is_carried_there_or_back_between_calls():
    x, _, _, omega = arrays(1, 2, 512, d=32, e=32, m=8, dtype=np.float32)
    chain = gpu.upload(x)
    before = gpu.traffic()
    for _ in range(5):
        chain = gpu.favor_attention(chain, chain, chain, omega, causal=True)
    between = gpu.traffic()
    assert between.read_backs == before.read_backs
    # Directions, tiles and borders of segments: far less than one of the tensors.
    assert between.uploaded_bytes - before.uploaded_bytes < 5 * x.nbytes / 10
    assert chain.numpy().shape == x.shape
    after = gpu.traffic()
    assert after.read_backs == before.read_backs + 1
    assert x.nbytes <= after.read_back_bytes - before.read_back_bytes < x.nbytes + 100


def test_a_projection_is_that_of_the_processor_to_rounding():
    options = {"norm": "sqrt_dim", "seed": 2**63 + 5, "stream": (1, 2, 3)}
    found = gpu.draw_projection(30, 12, **options)
    assert (found.shape, found.dtype) == ((30, 12), np.float32)
    np.testing.assert_allclose(found.numpy(), protperf.draw_projection(30, 12, **options), atol=1e-5)
    with pytest.raises(errors.ConfigError, match="sampler is iid, which is drawn on the CPU alone; on a GPU use orth"):
        gpu.draw_projection(30, 12, sampler="iid")
    with pytest.raises(errors.ConfigError, match="num_features is 0"):
        gpu.draw_projection(0, 12)


@pytest.mark.parametrize("feature_map", ["positive", "smreg", "relu"])
def test_a_projection_on_the_gpu_is_taken_as_the_same_one_on_the_host_is(feature_map):
    q, k, v, _ = arrays(1, 2, 40, d=6, dtype=np.float32)
    there, omega = on_gpu(q, k, v), gpu.draw_projection(20, 6, seed=3)
    found = gpu.favor_attention(*there, omega, feature_map=feature_map, causal=True)
    expected = gpu.favor_attention(*there, omega.numpy(), feature_map=feature_map, causal=True)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    before = gpu.traffic()
    out, state = gpu.favor_attention_with_state(*there, omega, feature_map=feature_map)
    # It was read back once, by the first call.
    assert gpu.traffic().read_backs == before.read_backs
    np.testing.assert_array_equal(out.numpy(), found.numpy())
    assert state.shape[:2] == (1, 2)


def test_a_projection_on_the_gpu_that_does_not_fit_is_refused_as_one_on_the_host_is():
    q, k, v, _ = arrays(1, 2, 5, d=6, dtype=np.float32)
    with pytest.raises(errors.ShapeError, match="omega has 7 columns"):
        gpu.favor_attention(*on_gpu(q, k, v), gpu.draw_projection(8, 7))
    with pytest.raises(errors.DtypeError, match=r"omega lies on a GPU; .*omega.numpy\(\)"):
        protperf.favor_attention(q, k, v, gpu.draw_projection(8, 6))


@pytest.mark.parametrize("causal", [False, True])
def test_packed_segments_of_any_size_have_the_bits_of_arrays_on_the_host_and_leave_each_other_alone(causal):
    q, k, v, omega = arrays(1, 2, 90, dtype=np.float32)
    v[:, :, :40] *= 1e-15
    options = {"causal": causal, "cu_seqlens": np.array([0, 40, 90])}
    first = []
    for size in (1.0, 1e35, 1e-35):
        sized = v.copy()
        sized[:, :, 40:] *= np.float32(size)
        found = gpu.favor_attention(*on_gpu(q, k, sized), omega, **options).numpy()
        np.testing.assert_array_equal(found, protperf.favor_attention(q, k, sized, omega, backend="wgpu", **options))
        first.append(found[:, :, :40])
    np.testing.assert_array_equal(first[1], first[0])
    np.testing.assert_array_equal(first[2], first[0])


def test_later_values_of_any_size_change_no_bit_of_an_earlier_row():
    q, k, v, omega = arrays(1, 2, 90, dtype=np.float32)
    for early, late in ((1e-20, 1e25), (1e-12, 1e27)):
        small = v * np.float32(early)
        large = small.copy()
        large[:, :, 40:] = v[:, :, 40:] * np.float32(late)
        found = [gpu.favor_attention(*on_gpu(q, k, x), omega, causal=True).numpy()[:, :, :40] for x in (small, large)]
        np.testing.assert_array_equal(*found)
        host = protperf.favor_attention(q, k, large, omega, causal=True, backend="wgpu")
        np.testing.assert_array_equal(host[:, :, :40], found[0])


def test_memory_is_given_back_and_a_budget_is_kept(monkeypatch):
    gc.collect()
    before = gpu.traffic().used_bytes
    x = gpu.upload(np.ones((1, 4, 1000, 8), np.float32))
    assert gpu.traffic().used_bytes == before + x.nbytes
    expected = gpu.favor_attention(x, x, x, None, feature_map="relu", causal=True)
    needed = gpu.traffic().used_bytes - before
    # What one head takes and more, but far from what four do.
    monkeypatch.setenv("PROTPERF_GPU_MEMORY", str(before + needed + 2_000_000))
    found = gpu.favor_attention(x, x, x, None, feature_map="relu", causal=True)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    monkeypatch.setenv("PROTPERF_GPU_MEMORY", str(before + needed + 200_000))
    (used,) = (adapter.name for adapter in gpu.adapters() if adapter.is_chosen)
    message = rf"the GPU {re.escape(used)} has no room for \d+ bytes: .*PROTPERF_GPU_MEMORY allows; allow more"
    with pytest.raises(errors.OutOfMemory, match=message):
        gpu.favor_attention(x, x, x, None, feature_map="relu", causal=True)
    monkeypatch.setenv("PROTPERF_GPU_MEMORY", "much")
    with pytest.raises(errors.DeviceError, match='PROTPERF_GPU_MEMORY is "much"; give bytes'):
        gpu.upload(np.ones(1, np.float32))
    del x, expected, found
    gc.collect()
    assert gpu.traffic().used_bytes == before


def test_arrays_and_dlpack_are_its_faces():
    torch = pytest.importorskip("torch")
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = gpu.upload(x[::-1])
    for back in (there.numpy(), np.asarray(there), np.from_dlpack(there), torch.from_dlpack(there).numpy()):
        np.testing.assert_array_equal(back, x[::-1])
    assert np.asarray(there, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="as a copy alone"):
        np.asarray(there, copy=False)
    np.testing.assert_array_equal(gpu.upload(torch.from_numpy(x)).numpy(), x)
    np.testing.assert_array_equal(gpu.upload([[0.5, 2]], dtype="float16").numpy(), np.array([[0.5, 2]], np.float16))
    assert repr(there) == "GpuTensor(shape=[2, 3], dtype=float32)"
    assert gpu.upload(np.zeros((0, 3), np.float16)).numpy().shape == (0, 3)


COMPLEX = "array holds complex numbers; a GPU computes on float32 and float16: upload x.real and x.imag"


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (None, "array is None; give an array of numbers"),
        (["a", "b"], "array holds values of type str32; .*: give an array of numbers"),
        (np.array([b"1"]), "array holds values of type bytes8; .*: give an array of numbers"),
        ([None, 1.0], "array holds values of type object; .*: give an array of numbers"),
        (np.array(["2020"], "datetime64[Y]"), r"array holds values of type datetime64\[Y\]; .*: give an array"),
        (np.ones(2, np.complex64), COMPLEX),
        ([1j], COMPLEX),
    ],
    ids=["None", "strings", "bytes", "objects", "dates", "complex64", "complex-list"],
)
def test_what_is_not_a_real_number_is_refused_with_and_without_a_type(array, message, dtype):
    with pytest.raises(errors.DtypeError, match=message):
        gpu.upload(array, dtype=dtype)


def test_a_tensor_of_bfloat16_is_refused_and_the_message_names_the_remedy():
    torch = pytest.importorskip("torch")
    x = torch.ones(3, dtype=torch.bfloat16)
    for dtype in (None, "float32"):
        with pytest.raises(errors.DtypeError, match=r"torch.bfloat16, which NumPy lacks; convert it .*x.float\(\)"):
            gpu.upload(x, dtype=dtype)
    np.testing.assert_array_equal(gpu.upload(x.float()).numpy(), np.ones(3, np.float32))


@pytest.mark.parametrize("use", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_a_tensor_is_neither_copied_nor_pickled_and_the_message_names_the_remedy(use):
    with pytest.raises(errors.DtypeError, match=r"neither copied nor pickled: .*numpy\(\).*gpu.upload"):
        use({"x": gpu.upload(np.ones(3, np.float32))}["x"])


def test_what_does_not_fit_is_refused_and_the_message_names_the_remedy():
    q, k, v, omega = arrays(1, 2, 5)
    with pytest.raises(errors.DtypeError, match=r"array has type float64.*say dtype='float32'"):
        gpu.upload(q)
    with pytest.raises(errors.ConfigError, match="dtype is 'float64'; use float32 or float16"):
        gpu.upload(q, dtype="float64")
    there = on_gpu(q, k, v, dtype="float32")
    with pytest.raises(errors.DtypeError, match=r"v of type ndarray is not on the GPU; carry it there with gpu.upload"):
        gpu.favor_attention(*there[:2], v, omega)
    with pytest.raises(errors.DtypeError, match=r"q lies on a GPU; use protperf.gpu.favor_attention, or q.numpy\(\)"):
        protperf.favor_attention(*there, omega)
    with pytest.raises(errors.DtypeError, match="must have one type, found q float32, k float32, v float16"):
        gpu.favor_attention(*there[:2], gpu.upload(v, dtype="float16"), omega)
    with pytest.raises(errors.ShapeError, match=r"state has .* is needed"):
        gpu.favor_attention_with_state(*there, omega, there[0])


FORKED = """
import os, numpy, protperf
from protperf import errors, gpu
x = gpu.upload(numpy.ones((1, 1, 5, 4), numpy.float32))
call = lambda x: gpu.favor_attention(x, x, x, None, feature_map="relu").numpy()
expected = call(x)
child = os.fork()
if child == 0:
    for use in (call, gpu.GpuTensor.numpy):
        try:
            use(x)
        except errors.DeviceError as error:
            assert "the tensor lies on a GPU that was lost, or that the process opened before it was" in str(error)
        else:
            os._exit(2)
    del x
    os._exit(0 if numpy.array_equal(call(gpu.upload(numpy.ones((1, 1, 5, 4), numpy.float32))), expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert numpy.array_equal(call(x), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_in_a_forked_child_a_tensor_says_that_it_is_of_no_use():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)
