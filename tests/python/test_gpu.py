"""`backend="wgpu"` from Python, and what it says where there is no GPU."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from attention_inputs import MAPS, arrays, worst

import protperf
from protperf import errors, gpu

pytestmark = pytest.mark.skipif("wgpu" not in protperf.backends(), reason="built without the feature wgpu")


@pytest.mark.usefixtures("gpu_device")
@pytest.mark.parametrize("feature_map", MAPS)
def test_the_gpu_computes_what_the_processor_does(feature_map):
    q, k, v, omega = arrays(2, 4, 70, kv_heads=2, scale=0.5, dtype=np.float32)
    padding = np.arange(140).reshape(2, 70) % 5 == 0
    packed = [x.reshape(1, x.shape[1], -1, x.shape[3]) for x in (q, k, v)]
    borders = np.array([0, 3, 3, 140])
    causal = {"causal": True, "key_padding_mask": padding}
    for inputs, options in [((q, k, v), causal), (packed, {"cu_seqlens": borders})]:
        call = {"feature_map": feature_map, **options}
        found = protperf.favor_attention(*inputs, omega, backend="wgpu", **call)
        assert 0 < worst(found, protperf.favor_attention(*inputs, omega, backend="cpu", **call)) < 1e-4


@pytest.mark.usefixtures("gpu_device")
def test_16_bits_are_computed_in_float32_and_strides_are_followed():
    q, k, v, omega = arrays(1, 2, 40, dtype=np.float16)
    found = protperf.favor_attention(q[:, :, ::-1], k, v, omega, backend="wgpu")
    assert found.dtype == np.float16
    assert worst(found, protperf.favor_attention(q[:, :, ::-1], k, v, omega)) < 1e-2


def test_float64_is_refused_and_the_message_names_the_remedy():
    with pytest.raises(errors.DtypeError, match=r'"wgpu" computes on float32.*not on float64.*backend="cpu"'):
        protperf.favor_attention(*arrays(), backend="wgpu")


@pytest.mark.usefixtures("gpu_device")
def test_threads_take_turns():
    q, k, v, omega = arrays(1, 2, 50, dtype=np.float32)
    expected, found = protperf.favor_attention(q, k, v, omega, backend="wgpu"), []

    def call():
        found.append(protperf.favor_attention(q, k, v, omega, backend="wgpu"))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(one, expected) for one in found)


FORKED = """
import os, numpy, protperf
x = numpy.ones((1, 1, 5, 4), numpy.float32)
omega = protperf.draw_projection(8, 4)
call = lambda: protperf.favor_attention(x, x, x, omega, backend="wgpu")
expected = call()
child = os.fork()
if child == 0:
    os._exit(0 if all(numpy.array_equal(call(), expected) for _ in range(3)) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert numpy.array_equal(call(), expected)
"""


@pytest.mark.usefixtures("gpu_device")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_opens_the_gpu_anew():
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=120)


@pytest.mark.usefixtures("gpu_device")
@pytest.mark.parametrize("choice", ["1", "2", "15", "256"])
def test_a_number_is_an_index_and_no_part_of_a_name(choice, monkeypatch):
    if int(choice) < len(gpu.adapters()):
        pytest.skip("this machine has so many adapters")
    monkeypatch.setenv("PROTPERF_GPU", choice)
    assert f"no adapter has the index {choice}; choose one of 0 (" in gpu.fault()
    assert not any(adapter.is_chosen for adapter in gpu.adapters())


CHOICES = [("off", "switched off"), ("OFF", "switched off"), ("no such GPU", "none of the adapters")]


@pytest.mark.parametrize(("choice", "message"), CHOICES)
def test_a_choice_that_finds_nothing_is_an_error_that_says_so(choice, message, monkeypatch):
    monkeypatch.setenv("PROTPERF_GPU", choice)
    assert message in gpu.fault()
    assert not any(adapter.is_chosen for adapter in gpu.adapters())
    code = (
        "import numpy, protperf; x = numpy.ones((1, 1, 3, 2), numpy.float32); "
        "protperf.favor_attention(x, x, x, protperf.draw_projection(4, 2), backend='wgpu')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert "protperf.errors.DeviceError: " in run.stderr
    assert message in run.stderr


def test_no_adapter_that_computes_on_the_processor_is_used_unasked(monkeypatch):
    monkeypatch.delenv("PROTPERF_GPU", raising=False)
    assert not any(adapter.is_chosen and adapter.kind == "processor" for adapter in gpu.adapters())
