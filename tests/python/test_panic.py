"""A panic in a kernel is an InternalError, in whichever thread it happens, and leaves nothing behind."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from attention_inputs import arrays, same_bits
from machine import HANG_S

import protperf
from protperf import _native
from protperf.errors import InternalError
from protperf.torch import favor_attention as torch_favor_attention

pytestmark = pytest.mark.skipif(
    not hasattr(_native, "_rehearse_panic"),
    reason="the native module was built without the cargo feature rehearse-panic",
)

# Chunks, scans and tasks each look at the cancel flag: these panics are at the start and in the middle.
CHECKS = (1, 2, 3, 5, 8, 13)


@pytest.fixture(autouse=True)
def _take_back():
    yield
    _native._rehearse_panic(0)


@pytest.fixture
def inputs(request):
    """Small: done by the calling thread. Large: by a thread of the call or, with two threads, by the pool's workers."""
    return arrays(1, 4, *((65, None, 8, 8, 16) if request.param == "small" else (1000, None, 32, 32, 64)))


SIZES = pytest.mark.parametrize(
    ("inputs", "threads"),
    [("small", 1), ("large", 1), ("large", 2)],
    indirect=["inputs"],
    ids=["caller", "call", "pool"],
)


@SIZES
@pytest.mark.parametrize("causal", [False, True])
def test_a_panic_is_an_internal_error_and_the_next_call_is_right(monkeypatch, capfd, inputs, threads, causal):
    monkeypatch.setenv("PROTPERF_NUM_THREADS", str(threads))
    needed = protperf.favor_attention(*inputs, causal=causal)
    for checks in CHECKS:
        _native._rehearse_panic(checks)
        with pytest.raises(InternalError, match="rehearsed") as caught:
            protperf.favor_attention(*inputs, causal=causal)
        assert isinstance(caught.value, RuntimeError)
        assert same_bits(protperf.favor_attention(*inputs, causal=causal), needed)
    # Where the panic happened: the names of threads are those of Rust's own report.
    where = {"caller": "<unnamed>", "call": "protperf-call", "pool": "protperf-"}
    kind = "pool" if threads == 2 else "call" if inputs[0].shape[2] == 1000 else "caller"
    reports = [line for line in capfd.readouterr().err.splitlines() if "panicked at" in line]
    assert len(reports) == len(CHECKS)
    if kind == "pool":
        assert any("'protperf-0'" in line or "'protperf-1'" in line for line in reports), reports
    else:
        assert all(where[kind] in line for line in reports), reports


@SIZES
def test_a_panic_inside_of_backward_is_an_internal_error_and_the_next_call_is_right(monkeypatch, inputs, threads):
    monkeypatch.setenv("PROTPERF_NUM_THREADS", str(threads))
    leaves = [torch.from_numpy(x).requires_grad_() for x in inputs]
    weight = torch.ones(inputs[2].shape, dtype=torch.float64)

    def gradients():
        return torch.autograd.grad(torch_favor_attention(*leaves, causal=True), leaves, weight)

    needed = gradients()
    for checks in CHECKS:
        out = torch_favor_attention(*leaves, causal=True)
        _native._rehearse_panic(checks)
        with pytest.raises(InternalError, match="rehearsed"):
            torch.autograd.grad(out, leaves, weight)
        assert all(same_bits(a, b) for a, b in zip(gradients(), needed, strict=True))


def test_a_panic_while_states_are_merged_is_an_internal_error():
    state = np.zeros((1, 2, 3, 6))
    _native._rehearse_panic(1)
    with pytest.raises(InternalError, match="rehearsed"):
        _native.merge_states(state, state, np.empty_like(state), 4)
    _native.merge_states(state, state, np.empty_like(state), 4)


def test_a_panic_is_an_ordinary_exception_and_does_not_end_the_process():
    code = (
        "import numpy as np, protperf\n"
        "x, omega = np.ones((1, 4, 2000, 32)), protperf.draw_projection(64, 32)\n"
        "protperf._native._rehearse_panic(9)\n"
        "try: protperf.favor_attention(x, x, x, omega)\n"
        "except Exception as error: assert isinstance(error, protperf.errors.InternalError)\n"
        "else: raise SystemExit('no panic')\n"
        "raise SystemExit(7)\n"
    )
    environment = os.environ | {"PROTPERF_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=environment, timeout=HANG_S, check=False
    )
    assert done.returncode == 7, done.stderr
