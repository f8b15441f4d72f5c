"""Backends, samplers and norms by name: those that the native module has, and no others."""

import logging

import numpy as np
import pytest
import torch
from attention_inputs import MAPS, arrays, worst

import protperf.torch
from protperf import LogLinear, _backends, errors
from protperf.lm.model.config import ModelConfig

# A GPU is not everywhere, and computes in float32 alone: tests/python/test_gpu.py. Products of bf16 round: see below.
EXACT = [name for name in protperf.backends() if name not in ("wgpu", "cpu-bf16")]


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("feature_map", MAPS)
def test_every_backend_computes_the_same(backend, feature_map):
    q, k, v, omega = arrays(2, 4, 70, kv_heads=2, scale=0.5)
    padding = np.arange(140).reshape(2, 70) % 5 == 0
    for options in ({"causal": True}, {"key_padding_mask": padding}):
        found = protperf.favor_attention(q, k, v, omega, feature_map=feature_map, backend=backend, **options)
        assert worst(found, protperf.favor_attention(q, k, v, omega, feature_map=feature_map, **options)) < 1e-10
    narrow = protperf.favor_attention(*(x.astype(np.float16) for x in (q, k, v)), omega, backend=backend)
    assert narrow.dtype == np.float16


@pytest.mark.parametrize("feature_map", MAPS)
def test_products_of_bf16_are_off_by_what_rounding_a_factor_costs(feature_map):
    q, k, v, omega = arrays(2, 4, 200, kv_heads=2, scale=0.5, dtype=np.float32)
    for options in ({"causal": True}, {"causal": False}):
        found, exact = (
            protperf.favor_attention(q, k, v, omega, feature_map=feature_map, backend=name, **options)
            for name in ("cpu-bf16", "cpu")
        )
        # Trigonometric sums may all but cancel, and say nothing of one factor.
        if feature_map != "trigonometric":
            assert np.linalg.norm(found - exact) < 0.006 * np.linalg.norm(exact)
    with pytest.raises(errors.DtypeError, match='backend "cpu-bf16" computes on float32, bfloat16 and float16'):
        protperf.favor_attention(*arrays(), backend="cpu-bf16")


def test_the_reference_is_another_computation_than_the_fast_one():
    """In float32 its bits differ from those of the kernels, so a name that is ignored shows."""
    q, k, v, omega = arrays(1, 2, 200, dtype=np.float32)
    record = LogLinear(omega)
    for options in ({"omega": omega}, {"omega": None, "feature_map": record}):
        fast, plain = (protperf.favor_attention(q, k, v, backend=name, **options) for name in ("cpu", "reference"))
        assert 0 < worst(fast, plain) < 1e-5
        assert np.array_equal(fast, protperf.favor_attention(q, k, v, **options))


def test_auto_is_a_backend_and_says_which_once(caplog):
    _backends._log_choice.cache_clear()
    with caplog.at_level(logging.DEBUG, logger="protperf"):
        for _ in range(3):
            protperf.favor_attention(*arrays())
        protperf.favor_attention(*arrays(), backend="cpu")
    assert [(record.name, record.levelname) for record in caplog.records] == [("protperf", "DEBUG")]
    assert caplog.records[0].getMessage() in [f"backend 'auto' is {name!r}" for name in protperf.backends()[1:]]
    assert protperf.backends()[0] == "auto"


def test_what_auto_is_may_depend_on_the_type_and_is_said_for_each(caplog):
    _backends._log_choice.cache_clear()
    q, k, v, omega = (torch.from_numpy(x) for x in arrays(dtype=np.float32))
    with caplog.at_level(logging.DEBUG, logger="protperf"):
        for dtype in (torch.bfloat16, torch.float32, torch.bfloat16):
            protperf.torch.favor_attention(q.to(dtype), k.to(dtype), v.to(dtype), omega)
    rounded = "cpu-bf16" if protperf.build_info()["bf16"] == "amx" else "cpu"
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"backend 'auto' is {rounded!r} for bfloat16", "backend 'auto' is 'cpu'"]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("gpu", errors.ConfigError, "backend 'gpu' is unknown; choose one of auto, cpu, cpu-bf16, reference"),
        ("CPU", errors.ConfigError, "backend 'CPU' is unknown"),
        (None, errors.DtypeError, "backend must be a string, not None"),
        (b"cpu", errors.DtypeError, "backend must be a string, not bytes"),
    ],
)
def test_a_name_that_is_none_of_them_is_refused(name, kind, message):
    with pytest.raises(kind, match=message):
        protperf.favor_attention(*arrays(), backend=name)


def test_samplers_and_norms_are_those_that_can_be_drawn():
    drawn = {
        (sampler, norm): protperf.draw_projection(6, 4, sampler=sampler, norm=norm)
        for sampler in protperf.samplers()
        for norm in protperf.norms()
    }
    assert len({omega.tobytes() for omega in drawn.values()}) == len(drawn)
    assert np.array_equal(drawn[protperf.samplers()[0], protperf.norms()[0]], protperf.draw_projection(6, 4))
    with pytest.raises(errors.ConfigError, match=f"choose one of {', '.join(protperf.samplers())}"):
        protperf.draw_projection(6, 4, sampler="sobol")
    with pytest.raises(errors.ConfigError, match=f"choose one of {', '.join(protperf.norms())}"):
        protperf.draw_projection(6, 4, norm="one")


def test_a_model_takes_every_sampler_and_norm_by_name():
    for sampler in protperf.samplers():
        for norm in protperf.norms():
            config = ModelConfig.from_size("nano", sampler=sampler, norm=norm)
            assert (config.sampler, config.norm) == (sampler, norm)
    with pytest.raises(errors.ConfigError, match="sampler"):
        ModelConfig.from_size("nano", sampler="sobol")
