"""Exponential maps given by their parameters, through NumPy: values, types, refusals."""

import numpy as np
import pytest
from attention_inputs import arrays, worst

import protperf
from protperf import LogLinear, errors


def parameters(m=16, d=8, seed=5):
    rng = np.random.default_rng(seed)
    directions, other = rng.standard_normal((2, m, d))
    return LogLinear(directions, other, rng.random(d), rng.standard_normal(m), rng.standard_normal(m))


def plain(q, k, v, record):
    """Sums over pairs and features, by the formulas of the class's documentation."""
    w_q, w_k, g, c_q, c_k = record.as_tuple()
    x, y = q * q.shape[3] ** -0.25, k * k.shape[3] ** -0.25
    of_queries = x @ w_q.T + c_q
    of_keys = y @ w_k.T + c_k - 0.5 * (g * y * y).sum(-1, keepdims=True)
    logs = of_queries[:, :, :, None] + of_keys[:, :, None]
    weights = np.exp(logs - logs.max((3, 4), keepdims=True)).sum(-1)
    return (weights @ v) / weights.sum(-1, keepdims=True)


def test_every_parameter_counts_as_documented():
    q, k, v, _ = arrays(2, 3, 20, scale=0.7)
    record = parameters()
    out = protperf.favor_attention(q, k, v, None, feature_map=record)
    assert worst(out, plain(q, k, v, record)) < 1e-12


def test_directions_alone_are_the_positive_map():
    q, k, v, omega = arrays(1, 2, 70)
    for causal in (False, True):
        needed = protperf.favor_attention(q, k, v, omega, causal=causal)
        assert np.array_equal(
            protperf.favor_attention(q, k, v, None, feature_map=LogLinear(omega), causal=causal), needed
        )


def test_parameters_per_head_are_those_of_each_head_alone():
    q, k, v, _ = arrays(1, 2, 20)
    of_heads = [parameters(seed=seed) for seed in (1, 2)]
    both = LogLinear(*(np.stack(pair) for pair in zip(*(r.as_tuple() for r in of_heads), strict=True)))
    together = protperf.favor_attention(q, k, v, None, feature_map=both)
    for head, record in enumerate(of_heads):
        one = slice(head, head + 1)
        alone = protperf.favor_attention(q[:, one], k[:, one], v[:, one], None, feature_map=record)
        assert np.array_equal(together[:, one], alone)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"omega": np.ones((16, 8))}, errors.ConfigError, "omega cannot be given together with a LogLinear"),
        ({"kernel_epsilon": 0.1}, errors.ConfigError, "a LogLinear feature_map takes none"),
        ({"key_directions": np.ones((15, 8))}, errors.ShapeError, "key_directions has 120 elements"),
        ({"key_quadratic": np.ones((1, 8))}, errors.ShapeError, "key_quadratic has 2 axes"),
        ({"key_constants": np.ones(3)}, errors.ShapeError, "key_constants has 3 elements"),
        ({"query_directions": np.ones((16, 7))}, errors.ShapeError, "query_directions has 7 columns"),
        ({"query_constants": np.ones(16, int)}, errors.DtypeError, "a parameter of type int64"),
        ({"query_constants": [[1.0], [1.0, 2.0]]}, errors.DtypeError, "feature_map of type list is not an array"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_parameters_that_cannot_be_are_refused(change, kind, message):
    q, k, v, _ = arrays(1, 2, 6)
    fields = dict(zip(LogLinear.__dataclass_fields__, parameters().as_tuple(), strict=True))
    options = {name: change[name] for name in ("omega", "kernel_epsilon") if name in change}
    record = LogLinear(**(fields | {name: value for name, value in change.items() if name in fields}))
    with pytest.raises(kind, match=message):
        protperf.favor_attention(q, k, v, **({"omega": None} | options), feature_map=record)


def test_a_parameter_that_is_not_finite_is_nan_in_every_output_of_its_heads():
    q, k, v, _ = arrays(1, 2, 6)
    for field in range(5):
        changed = [np.stack([x, x]) for x in parameters().as_tuple()]
        changed[field][1].flat[0] = np.inf
        out = protperf.favor_attention(q, k, v, None, feature_map=LogLinear(*changed))
        assert np.isnan(out[:, 1]).all()
        assert np.isfinite(out[:, 0]).all()
