"""What cannot be computed is refused before anything is allocated, in words that name the argument."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from attention_inputs import arrays

import protperf
from protperf import errors
from protperf.torch import favor_attention as torch_favor_attention
from protperf.torch import softmax_attention as torch_softmax_attention

CASES = {
    "q axes": ({"q": lambda x: x[0]}, ValueError, "q has 3 axes"),
    "k axes": ({"k": lambda x: x[0]}, ValueError, "k has 3 axes"),
    "v axes": ({"v": lambda x: x[None]}, ValueError, "v has 5 axes"),
    "batch": ({"k": lambda x: x[:1], "v": lambda x: x[:1]}, ValueError, "k has batch 1 but q has batch 2"),
    "head_dim": ({"k": lambda x: x[..., :5]}, ValueError, "k has head_dim 5 but q has head_dim 8"),
    "v length": ({"v": lambda x: x[:, :, :5]}, ValueError, "v has"),
    "heads": ({"q": lambda x: x[:, :3]}, ValueError, "q has 3 heads, not a multiple of the 2"),
    "no kv heads": ({"k": lambda x: x[:, :0], "v": lambda x: x[:, :0]}, ValueError, "q has 4 heads"),
    "no head_dim": ({"q": lambda x: x[..., :0], "k": lambda x: x[..., :0]}, ValueError, "q has head_dim 0"),
    "integers": ({"q": lambda x: x.astype(np.int64)}, TypeError, "q has type int64"),
    "bool": ({"v": lambda x: x > 0}, TypeError, "v has type bool"),
    "mixed": ({"k": lambda x: x.astype(np.float32)}, TypeError, "q float64, k float32, v float64"),
    "omega axes": ({"omega": lambda x: x[0]}, ValueError, "omega has 1 axes"),
    "omega columns": ({"omega": lambda x: x[:, :5]}, ValueError, "omega has 5 columns .* draw it with head_dim=8"),
    "omega rows": ({"omega": lambda x: x[:0]}, ValueError, "omega has no rows"),
    "omega heads": ({"omega": lambda x: np.stack([x, x])}, ValueError, "omega has 2 heads but q has 4"),
    "omega type": ({"omega": lambda x: x.astype(np.int32)}, TypeError, "omega has type int32"),
    "no omega": ({"omega": lambda x: None}, ValueError, "omega is needed by feature_map 'positive'"),
    "map": ({"feature_map": "sofmax"}, ValueError, "'sofmax' is unknown; choose one of positive, "),
    "causal cross": (
        {"causal": True, "q": lambda x: x[:, :, :3]},
        ValueError,
        "k has length 6 but causal attention needs q's length 3",
    ),
    "mask shape": ({"key_padding_mask": np.zeros((2, 5), bool)}, ValueError, "key_padding_mask has shape"),
    "mask type": ({"key_padding_mask": np.zeros((2, 6))}, TypeError, "key_padding_mask has type float64"),
    "borders batch": ({"cu_seqlens": np.array([0, 6])}, ValueError, "cu_seqlens needs batch 1"),
    "borders type": ({"cu_seqlens": np.array([0.0, 6.0]), "batch": 1}, TypeError, "cu_seqlens has type float64"),
    "borders bool": ({"cu_seqlens": np.array([False, True]), "batch": 1}, TypeError, "cu_seqlens has type bool"),
    "borders axes": ({"cu_seqlens": np.array([[0, 6]]), "batch": 1}, ValueError, "cu_seqlens has 2 axes"),
    "borders empty": ({"cu_seqlens": np.array([], np.int64), "batch": 1}, ValueError, "cu_seqlens is empty"),
    "borders start": ({"cu_seqlens": np.array([1, 6]), "batch": 1}, ValueError, "runs from 1 to 6"),
    "borders end": ({"cu_seqlens": np.array([0, 7]), "batch": 1}, ValueError, "must run from 0 to L = 6"),
    "borders fall": ({"cu_seqlens": np.array([0, 4, 3, 6]), "batch": 1}, ValueError, "decreases at index 2"),
    "both": (
        {"cu_seqlens": np.array([0, 6]), "key_padding_mask": np.zeros((1, 6), bool), "batch": 1},
        ValueError,
        "key_padding_mask cannot be given together with cu_seqlens",
    ),
    "epsilon type": ({"kernel_epsilon": "small"}, TypeError, "kernel_epsilon must be a number, not str"),
    "epsilon bool": ({"kernel_epsilon": True}, TypeError, "kernel_epsilon must be a number, not bool"),
    "epsilon negative": ({"kernel_epsilon": -1.0, "feature_map": "relu"}, ValueError, "kernel_epsilon"),
    "epsilon nan": ({"kernel_epsilon": float("nan"), "feature_map": "relu"}, ValueError, "kernel_epsilon"),
    "epsilon of an exponential map": ({"kernel_epsilon": 0.1}, ValueError, "kernel_epsilon"),
}


def arguments(changes):
    q, k, v, omega = arrays(changes.get("batch", 2), 4, 6, kv_heads=2)
    given = {"q": q, "k": k, "v": v, "omega": omega}
    given = {name: changes[name](x) if callable(changes.get(name)) else x for name, x in given.items()}
    return given, {name: x for name, x in changes.items() if name not in (*given, "batch")}


def as_tensors(options):
    return {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


@pytest.mark.parametrize("case", CASES)
def test_numpy_arguments_that_cannot_be_are_refused(case):
    changes, kind, message = CASES[case]
    given, options = arguments(changes)
    with pytest.raises(kind, match=message) as caught:
        protperf.favor_attention(**given, **options)
    assert isinstance(caught.value, protperf.Error)
    if "omega" not in case and "map" not in case and "epsilon" not in case:
        del given["omega"]
        with pytest.raises(kind, match=message):
            protperf.softmax_attention(**given, **options)


@pytest.mark.parametrize("case", CASES)
def test_torch_arguments_that_cannot_be_are_refused(case):
    changes, kind, message = CASES[case]
    given, options = arguments(changes)
    given, options = as_tensors(given), as_tensors(options)
    with pytest.raises(kind, match=message):
        torch_favor_attention(**given, **options)
    if "omega" not in case and "map" not in case and "epsilon" not in case:
        del given["omega"]
        with pytest.raises(kind, match=message):
            torch_softmax_attention(**given, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"causal": "yes"}, "causal must be True or False, not str 'yes'"),
        ({"causal": None}, "causal must be True or False, not None"),
        ({"causal": 1}, "causal must be True or False, not int 1"),
        ({"q": object()}, "q has type object"),
        ({"q": [[1.0], [1.0, 2.0]]}, "q of type list is not an array"),
        ({"q": torch.ones(2, 4, 6, 8, dtype=torch.bfloat16)}, "q of type Tensor is not an array.*use protperf.torch"),
        ({"k": torch.ones(2, 2, 6, 8, requires_grad=True)}, "k of type Tensor is not an array.*use protperf.torch"),
        ({"omega": [[1.0], [1.0, 2.0]]}, "omega of type list is not an array"),
        ({"omega": "gaussian"}, "omega has type str"),
        ({"feature_map": 3}, "feature_map must be a name or a LogLinear, not int"),
        ({"feature_map": ["relu"]}, "feature_map must be a name or a LogLinear, not list"),
        ({"kernel_epsilon": 1 + 2j}, "kernel_epsilon must be a number, not complex"),
        ({"key_padding_mask": "left"}, "key_padding_mask has type str"),
        ({"cu_seqlens": "0,6", "batch": 1}, "cu_seqlens has type str"),
        ({"cu_seqlens": [[0], [0, 6]], "batch": 1}, "cu_seqlens of type list is not an array"),
    ],
    ids=lambda x: str(next(iter(x))) if isinstance(x, dict) else None,
)
def test_numpy_arguments_of_the_wrong_kind_are_refused_by_name(changes, message):
    given, options = arguments({"batch": changes.get("batch", 2)})
    with pytest.raises(errors.DtypeError, match=message):
        protperf.favor_attention(**(given | options | {k: x for k, x in changes.items() if k != "batch"}))


def test_a_number_that_no_float_holds_is_refused():
    given, _ = arguments({})
    with pytest.raises(errors.ConfigError, match="kernel_epsilon is int, which no float holds"):
        protperf.favor_attention(**given, feature_map="relu", kernel_epsilon=10**400)


def test_lists_are_arrays_and_flags_may_be_numpys():
    given, _ = arguments({"batch": 1})
    needed = protperf.favor_attention(**given, causal=True, cu_seqlens=np.array([0, 2, 6]))
    lists = {name: x.tolist() for name, x in given.items()}
    assert np.array_equal(protperf.favor_attention(**lists, causal=np.bool_(True), cu_seqlens=[0, 2, 6]), needed)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"num_features": 0}, ValueError, "num_features is 0"),
        ({"head_dim": -1}, ValueError, "head_dim is -1"),
        ({"num_features": 2.5}, TypeError, "num_features must be an integer, not float 2.5"),
        ({"num_features": None}, TypeError, "num_features must be an integer, not None"),
        ({"num_features": True}, TypeError, "num_features must be an integer, not bool True"),
        ({"head_dim": "64"}, TypeError, "head_dim must be an integer, not str '64'"),
        ({"seed": 1.0}, TypeError, "seed must be an integer, not float 1.0"),
        ({"sampler": None}, TypeError, "sampler must be a string, not None"),
        ({"norm": 2}, TypeError, "norm must be a string, not int 2"),
        ({"stream": 3}, TypeError, "stream is 3; it must be three integers"),
        ({"stream": (0, 0, 0.5)}, TypeError, "stream is .* it must be three integers"),
        ({"sampler": "sobol"}, ValueError, "sobol"),
        ({"norm": "unit"}, ValueError, "unit"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": 2**64}, ValueError, "seed is"),
        ({"stream": (0, 0)}, ValueError, "stream is"),
        ({"stream": (0, 0, 2**32)}, ValueError, "stream is"),
        ({"num_features": 2**40, "head_dim": 2**40}, (ValueError, MemoryError), None),
        ({"num_features": 2**62, "head_dim": 1}, (ValueError, MemoryError), None),
    ],
)
def test_projections_that_cannot_be_are_refused(changes, kind, message):
    with pytest.raises(kind, match=message):
        protperf.draw_projection(**({"num_features": 4, "head_dim": 4} | changes))


@pytest.mark.parametrize("name", ["sse9", "AVX2 ", "neon" if "neon" not in protperf.build_info()["isas"] else "avx2"])
def test_an_isa_this_machine_lacks_is_refused(monkeypatch, name):
    monkeypatch.setenv("PROTPERF_ISA", name)
    q, k, v, omega = arrays()
    with pytest.raises((ValueError, RuntimeError), match=name.strip()):
        protperf.favor_attention(q, k, v, omega)


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", "99999999"])
def test_a_number_of_threads_that_cannot_be_is_refused(monkeypatch, number):
    monkeypatch.setenv("PROTPERF_NUM_THREADS", number)
    q, k, v, omega = arrays()
    with pytest.raises(ValueError, match="PROTPERF_NUM_THREADS"):
        protperf.favor_attention(q, k, v, omega)


def test_sizes_whose_products_overflow_are_refused_before_allocation():
    one = torch.zeros(1)
    wide = one.expand(2**20, 2**20, 1, 2**10)
    with pytest.raises((ValueError, MemoryError)):
        torch_favor_attention(wide, wide, wide, torch.ones(1, 2**10))
    numpy_wide = np.lib.stride_tricks.as_strided(np.zeros(1), (2**20, 2**20, 1, 2**10), (0, 0, 0, 0))
    with pytest.raises((ValueError, MemoryError)):
        protperf.favor_attention(numpy_wide, numpy_wide, numpy_wide, np.ones((1, 2**10)))


@pytest.mark.parametrize("power", [31, pytest.param(32, marks=pytest.mark.soak)])
def test_views_with_more_elements_than_32_bits_count_are_walked_right(power):
    """One row of memory seen as 2^power numbers: an index that overflows reads somewhere else, or ends the process."""
    length, d = 2 ** (power - 9), 2**9 + 8
    row = torch.linspace(-1, 1, d, dtype=torch.float64)
    keys = row.expand(1, 1, length, d)
    assert keys.numel() > 2**power
    omega = torch.from_numpy(protperf.draw_projection(1, d))
    q, v = row.reshape(1, 1, 1, d) + 1, torch.tensor(3.0, dtype=torch.float64).expand(1, 1, length, 1)
    # All keys are alike and all values 3, and so is their mean; sums of millions round.
    assert abs(torch_favor_attention(q, keys, v, omega).item() - 3) < 1e-9


def test_errors_derive_from_the_builtin_of_their_kind():
    kinds = {
        errors.ShapeError: ValueError,
        errors.ConfigError: ValueError,
        errors.DtypeError: TypeError,
        errors.DeviceError: RuntimeError,
        errors.OutOfMemory: MemoryError,
        errors.InternalError: RuntimeError,
    }
    for ours, builtin in kinds.items():
        assert issubclass(ours, errors.Error)
        assert issubclass(ours, builtin)
        assert str(pickle.loads(pickle.dumps(ours("what")))) == "what"


def test_checks_hold_under_python_O(tmp_path):
    code = (
        "import numpy as np, protperf\n"
        "x = np.ones((1, 1, 3, 4))\n"
        "try: protperf.favor_attention(x, x, x, np.ones((2, 5)))\n"
        "except ValueError: raise SystemExit(7)\n"
    )
    assert subprocess.run([sys.executable, "-O", "-c", code], check=False, cwd=tmp_path).returncode == 7
