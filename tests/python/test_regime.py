"""What is said beforehand about the error of an estimate, against the error that is found."""

import math

import pytest
import torch

import protperf
from protperf.torch import softmax_attention
from protperf.torch.nn import attention_core
from protperf.torch.regime import closed_form_error, measure

D, L = 64, 128


def data(kind, size, seed=0):
    """q, k, v [1,1,L,D] with |x|^2 and |y|^2 of about `size`."""
    gen = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 1, L, D, generator=gen, dtype=torch.float64) for _ in range(3))
    if kind == "peaked":
        q = k + 0.5 * torch.randn(1, 1, L, D, generator=gen, dtype=torch.float64)
    if kind == "skewed":
        axes = torch.linspace(-1, 1, D, dtype=torch.float64).exp()
        q, k = q * axes, k / axes
    if kind == "shifted":
        q, k = (x + 3 * math.sqrt(D / size) * torch.eye(D, dtype=torch.float64)[i] for i, x in enumerate((q, k)))
    q, k = (x * math.sqrt(size / D) * D**0.25 for x in (q, k))
    return q, k, v


def found_error(feature_map, q, k, v):
    """The error of modules with these inputs, over draws."""
    needed = softmax_attention(q, k, v)
    squares = 0.0
    for seed in range(4):
        core = attention_core(D, 1, feature_map=feature_map, seed=100 + seed).double()
        if hasattr(core, "observe"):
            core.observe(q, k)
        squares += float((core(q, k, v) - needed).square().sum()) / 4
    return math.sqrt(squares / float(needed.square().sum()))


@pytest.mark.parametrize("size", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("kind", ["random", "peaked", "skewed"])
def test_the_error_is_foretold_within_a_factor_of_two(kind, size):
    q, k, v = data(kind, size)
    expected = float(measure(q, k, shift=False).error)
    assert 0.5 < expected / found_error("positive", q, k, v) < 2


@pytest.mark.parametrize("kind", ["random", "skewed", "shifted"])
def test_the_error_of_fitted_maps_is_foretold_too(kind):
    q, k, v = data(kind, 1.0)
    assert 0.5 < float(measure(q, k, feature_map="saderf").error) / found_error("saderf", q, k, v) < 2


def test_padding_is_left_out_of_the_figures():
    q, k, _ = data("peaked", 2.0)
    padding = torch.arange(L)[None] >= 100
    hidden = padding[:, None, :, None]
    needed = measure(q[:, :, :100], k[:, :, :100])
    for content in (0.0, 1e3, torch.nan):
        found = measure(q.masked_fill(hidden, content), k.masked_fill(hidden, content), key_padding_mask=padding)
        assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(found[:3], needed[:3], strict=True))
    longer = measure(q.repeat(1, 1, 4, 1), k, key_padding_mask=padding)
    assert torch.isfinite(longer.error).all()


def test_the_closed_form_holds_where_estimates_are_good():
    for size in (0.5, 1.0, 1.5):
        q, k, v = data("random", size)
        regime = measure(q, k, shift=False)
        assert abs(float(regime.size) - 2 * size) < 0.2 * size
        assert 0.5 < float(closed_form_error(regime.size, 256)) / found_error("positive", q, k, v) < 2


def test_advice_says_what_to_do():
    cases = (
        ("random", 0.5, ": fine"),
        ("peaked", 2.0, "features would bring it below 0.2"),
        ("random", 16.0, "an average over all keys"),
    )
    for kind, size, word in cases:
        q, k, _ = data(kind, size)
        (line,) = measure(q, k, num_features=1024).advice()
        assert line.startswith("head 0: error")
        assert word in line, line
    assert len(measure(*(x.expand(1, 4, L, D) for x in data("random", 1.0)[:2])).advice()) == 4


def test_arguments_that_cannot_be_are_refused():
    q, k, _ = data("random", 1.0)
    for options, message in (({"feature_map": "relu"}, "relu"), ({"num_features": 0}, "num_features is 0")):
        with pytest.raises(protperf.Error, match=message):
            measure(q, k, **options)
