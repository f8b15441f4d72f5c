"""The same bits for any number of threads, in any repetition, and under other load."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from attention_inputs import MAPS, same_bits, tensors

from protperf.torch import favor_attention

THREADS = (1, 2, 3, 8, 32)
REPEATS = 50


@pytest.fixture
def burner():
    """A process that keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    process.kill()
    process.wait()


def run(inputs, weight, **options):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = favor_attention(*leaves, **options)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize("causal", [False, True])
def test_equal_bits_for_any_number_of_threads_250_times(monkeypatch, burner, causal):
    inputs = tensors(1, 2, 300, d=64, e=64, m=64, dtype=torch.float32)
    weight = torch.randn(1, 2, 300, 64, generator=torch.Generator().manual_seed(0))
    needed = None
    for threads in THREADS:
        monkeypatch.setenv("PROTPERF_NUM_THREADS", str(threads))
        for _ in range(REPEATS):
            found = run(inputs, weight, causal=causal)
            needed = needed or found
            assert all(same_bits(a, b) for a, b in zip(needed, found, strict=True)), threads


@pytest.mark.parametrize("feature_map", MAPS)
def test_every_map_and_form_has_equal_bits_for_any_number_of_threads(monkeypatch, feature_map):
    inputs = tensors(2, 3, 520, d=24, e=20, m=48, scale=0.5, dtype=torch.float32)
    weight = torch.randn(2, 3, 520, 20, generator=torch.Generator().manual_seed(0))
    mask = torch.from_numpy(np.random.default_rng(1).random((2, 520)) < 0.2)
    for options in ({}, {"causal": True}, {"key_padding_mask": mask}):
        results = []
        for threads in THREADS:
            monkeypatch.setenv("PROTPERF_NUM_THREADS", str(threads))
            results.append(run(inputs, weight, feature_map=feature_map, **options))
        for other in results[1:]:
            assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 10, 64, 65, 300])
def test_the_bits_of_an_entry_do_not_depend_on_how_many_there_are(length, causal):
    q, k, v, omega = tensors(40, 4, length, kv_heads=2, d=16, e=16, m=32, dtype=torch.float32)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(0))
    needed = run((q, k, v, omega), weight, causal=causal)[:4]
    for entries in (slice(0, 1), slice(7, 10)):
        found = run((q[entries], k[entries], v[entries], omega), weight[entries], causal=causal)[:4]
        assert all(same_bits(a[entries], b) for a, b in zip(needed, found, strict=True))


def test_flush_to_zero_of_the_caller_changes_no_bit():
    inputs = tensors(1, 1, 40, dtype=torch.float32)
    inputs = [x * 1e-38 if i < 2 else x for i, x in enumerate(inputs)]
    inputs[2] = inputs[2] * 1e-38
    weight = torch.ones(1, 1, 40, 8)
    needed = run(inputs, weight, causal=True)
    assert torch.set_flush_denormal(True)
    try:
        found = favor_attention(*inputs, causal=True)
    finally:
        torch.set_flush_denormal(False)
    assert same_bits(found, needed[0])
