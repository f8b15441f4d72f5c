"""Arrays of other libraries: taken as they are through DLPack, and refused by name where the CPU cannot read them."""

import subprocess
import sys

import numpy as np
import pytest
from attention_inputs import arrays, same_bits

import protperf
from protperf._arrays import as_array


class Foreign:
    """An array that speaks DLPack and nothing else, as one of a library that NumPy does not know."""

    def __init__(self, values):
        self.values = values

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)


class OnDevice(Foreign):
    """An array on a GPU, which would have to be copied."""

    def __init__(self, values, kind):
        super().__init__(values)
        self.kind = kind

    def __dlpack_device__(self):
        return self.kind, 0

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("copied without being asked")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_arrays_of_any_library_give_the_bits_of_numpy(dtype):
    q, k, v, omega = arrays(2, 2, 20, dtype=dtype)
    padding = np.arange(20) >= np.array([[20], [15]])
    needed = protperf.favor_attention(q, k, v, omega, key_padding_mask=padding)
    found = protperf.favor_attention(*map(Foreign, (q, k, v, omega)), key_padding_mask=Foreign(padding))
    assert type(found) is np.ndarray
    assert same_bits(found, needed)
    exact = protperf.softmax_attention(Foreign(q), k, Foreign(v), causal=True)
    assert same_bits(exact, protperf.softmax_attention(q, k, v, causal=True))
    borders = np.array([0, 3, 20])
    packed = (x[:1] for x in (q, k, v))
    needed = protperf.favor_attention(*packed, omega, cu_seqlens=borders)
    packed = (Foreign(x[:1]) for x in (q, k, v))
    assert same_bits(protperf.favor_attention(*packed, omega, cu_seqlens=Foreign(borders)), needed)


def test_a_map_given_by_its_parameters_takes_them_too():
    q, k, v, omega = arrays(1, 2, 20)
    record = protperf.LogLinear(Foreign(omega), key_constants=Foreign(np.ones(len(omega))))
    needed = protperf.favor_attention(q, k, v, omega)
    assert np.abs(protperf.favor_attention(q, k, v, None, feature_map=record) - needed).max() < 1e-12


def test_memory_is_not_copied():
    values = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    assert np.shares_memory(as_array("q", Foreign(values)), values)
    assert same_bits(as_array("q", Foreign(values)), values)


@pytest.mark.parametrize(("kind", "word"), [(2, "CUDA"), (8, "Metal"), (10, "ROCm"), (99, "DLPack type 99")])
def test_an_array_on_a_device_is_refused_by_name(kind, word):
    q, k, v, omega = arrays()
    with pytest.raises(protperf.errors.DeviceError, match=rf"k is on a device \({word}\).*copy it to the CPU first"):
        protperf.favor_attention(q, OnDevice(k, kind), v, omega)


def test_a_type_that_numpy_has_not_is_refused_by_name():
    class Odd(Foreign):
        def __dlpack__(self, **options):
            raise BufferError("bfloat16 is not supported")

    q, k, v, omega = arrays()
    with pytest.raises(protperf.errors.DtypeError, match="v of type Odd is not an array: bfloat16"):
        protperf.favor_attention(q, k, Odd(v), omega)


def test_neither_torch_nor_jax_is_imported_for_foreign_arrays():
    code = (
        "import sys, numpy, protperf\n"
        "class Foreign:\n"
        "    def __init__(self, x): self.x = x\n"
        "    def __dlpack_device__(self): return self.x.__dlpack_device__()\n"
        "    def __dlpack__(self, **options): return self.x.__dlpack__(**options)\n"
        "x = Foreign(numpy.ones((1, 1, 5, 8)))\n"
        "assert abs(protperf.softmax_attention(x, x, x) - 1).max() < 1e-12\n"
        "assert not {'torch', 'jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arrays_of_jax():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    q, k, v, omega = arrays(dtype=np.float32)
    needed = protperf.favor_attention(q, k, v, omega)
    found = protperf.favor_attention(*map(jax.numpy.asarray, (q, k, v)), omega)
    assert same_bits(found, needed)
