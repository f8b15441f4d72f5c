"""Calls of torch's attention function answered by a module: masks, and calls inside of a `with`."""

import threading

import pytest
import torch
from attention_inputs import same_bits, worst
from torch.nn.functional import scaled_dot_product_attention as imported_by_name

from protperf.errors import ConfigError, ShapeError
from protperf.torch import favor_attention, softmax_attention
from protperf.torch.nn import (
    FavorAttention,
    attention_core,
    replace_attention,
    scaled_dot_product_attention,
    sdpa_answered_by,
)

SDPA = torch.nn.functional.scaled_dot_product_attention
EXACT = attention_core(8, 4, feature_map="exact")
KEYS = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
LEFT = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
TRIL = torch.ones(6, 6, dtype=torch.bool).tril()


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(q_len=6):
    return rows(2, 4, q_len, 8), rows(2, 2, 6, 8, seed=1), rows(2, 2, 6, 3, seed=2)


def added(mask, lowest=-torch.inf, dtype=torch.float32):
    """A bool mask as numbers that are added to logits."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, lowest)


LOWEST = torch.finfo(torch.float32).min
MASKS = {
    "keys": KEYS[:, None, None],
    "keys, float": added(KEYS[:, None, None]),
    "keys, lowest number": added(KEYS[:, None, None], LOWEST),
    "keys, of one sequence": KEYS[1:],
    "keys, expanded": KEYS[:, None, None].expand(2, 1, 6, 6),
    "keys, expanded, float": added(KEYS[:, None, None].expand(2, 1, 6, 6)),
    "keys, of every head": KEYS[:, None, None].expand(2, 4, 6, 6).contiguous(),
    "causal": TRIL,
    "causal, float": added(TRIL),
    "causal, of every head": TRIL.expand(2, 4, 6, 6),
    "causal and keys": TRIL & KEYS[:, None, None],
    "causal and left padding": TRIL & LEFT[:, None, None],
    "causal and keys, float": added(TRIL & KEYS[:, None, None]),
    "causal and keys, lowest number": added(TRIL & KEYS[:, None, None], LOWEST),
    "all": torch.ones(6, 6, dtype=torch.bool),
    "none": torch.zeros(2, 1, 6, 6, dtype=torch.bool),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_linear_attention_has_are_those_of_torch(name):
    q, k, v = inputs()
    mask = MASKS[name]
    needed = SDPA(q, k, v, mask, enable_gqa=True).nan_to_num()
    assert worst(scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, core=EXACT), needed) < 1e-5
    padding, causal = (None, True) if name == "causal" else (~KEYS, False)
    if name in ("causal", "keys, float", "keys, expanded"):
        core = FavorAttention(8, 16)
        found = scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, core=core)
        assert worst(found, core(q, k, v, causal=causal, key_padding_mask=padding)) < 1e-6


@pytest.mark.parametrize("mask", [None, KEYS[:, None, None], added(KEYS[:, None, None]), KEYS[:, None, None, :1]])
@pytest.mark.parametrize("causal", [False, True])
def test_a_single_query_sees_the_keys_of_any_mask(mask, causal):
    q, k, v = inputs(q_len=1)
    core = attention_core(8, 4, feature_map="exact", causal=causal)
    needed = SDPA(q, k, v, mask, enable_gqa=True)
    assert worst(scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, core=core), needed) < 1e-5


def test_other_arguments_and_axes_are_those_of_torch():
    q, k, v = inputs()
    for options in ({"is_causal": True}, {"scale": 0.7}):
        needed = SDPA(q, k, v, enable_gqa=True, **options)
        assert worst(scaled_dot_product_attention(q, k, v, enable_gqa=True, core=EXACT, **options), needed) < 1e-5
    both = scaled_dot_product_attention(q, k, v, KEYS[:, None, None], is_causal=True, enable_gqa=True, core=EXACT)
    assert worst(both, SDPA(q, k, v, MASKS["causal and keys"], enable_gqa=True)) < 1e-5
    assert worst(scaled_dot_product_attention(q[0], q[0], q[0], core=EXACT), SDPA(q[0], q[0], q[0])) < 1e-5
    more = [x.expand(3, *x.shape) for x in (q, k, v)]
    mask = KEYS[:, None, None].expand(3, 2, 1, 1, 6)
    found = scaled_dot_product_attention(*more, mask, enable_gqa=True, core=EXACT)
    assert worst(found, SDPA(*more, mask, enable_gqa=True)) < 1e-5
    none = torch.ones(0, 6, dtype=torch.bool)
    empty = scaled_dot_product_attention(q[:, :, :0], k, v, none, enable_gqa=True, core=EXACT)
    assert empty.shape == (2, 4, 0, 3)


BAND = TRIL & ~TRIL.tril(-3)
HEADS = torch.stack([TRIL, TRIL, TRIL, torch.ones(6, 6, dtype=torch.bool)])


@pytest.mark.parametrize(
    ("mask", "kind", "message"),
    [
        (BAND, ConfigError, "not the causal mask, nor one of keys alone, nor both"),
        (TRIL.T, ConfigError, "not the causal mask, nor one of keys alone, nor both"),
        (TRIL[:, :1] & (torch.arange(6) < 3)[:, None], ConfigError, "not the causal mask"),
        (HEADS, ConfigError, "not the same for all heads"),
        (torch.full((6, 6), -1e9), ConfigError, "numbers other than 0 and -inf"),
        (rows(6, 6), ConfigError, "numbers other than 0 and -inf"),
        (torch.full((2, 1, 6, 6), torch.nan), ConfigError, "numbers other than 0 and -inf"),
        (torch.full((2, 1, 1, 6), LOWEST), ConfigError, "rows of the lowest number alone"),
        (torch.zeros(6, 6, requires_grad=True), ConfigError, "attn_mask needs a gradient"),
        (torch.ones(6, 6, dtype=torch.int64), ConfigError, "attn_mask has type torch.int64"),
        (torch.ones(2, 3, 6, 6, dtype=torch.bool), ShapeError, r"attn_mask has shape \[2, 3, 6, 6\]"),
        (torch.ones(1, 2, 4, 6, 6, dtype=torch.bool), ShapeError, "it must fit"),
        (torch.ones(6, 5, dtype=torch.bool), ShapeError, r"it must fit \[..,H,L,S\] \[2, 4, 6, 6\]"),
    ],
    ids=range(13),
)
def test_masks_that_linear_attention_has_not_are_refused(mask, kind, message):
    q, k, v = inputs()
    with pytest.raises(kind, match=message):
        scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, core=EXACT)


def test_masks_of_more_keys_than_queries_hide_keys_alone():
    q, k, v = inputs(q_len=4)
    found = scaled_dot_product_attention(q, k, v, MASKS["keys"].expand(2, 1, 4, 6), enable_gqa=True, core=EXACT)
    assert worst(found, SDPA(q, k, v, MASKS["keys"], enable_gqa=True)) < 1e-5
    with pytest.raises(ConfigError, match="not the causal mask"):
        scaled_dot_product_attention(q, k, v, TRIL[2:], enable_gqa=True, core=EXACT)


# -- Calls inside of a `with`


class Model(torch.nn.Module):
    """A user's module that calls torch's function by both of its names."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, x, dropout=0.0):
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        first = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        second = imported_by_name(q, k, first, attn_mask=None)
        return self.out(second.transpose(1, 2).flatten(2))


def test_calls_inside_of_a_with_are_answered_by_the_core_and_others_by_torch():
    torch.manual_seed(0)
    model, core, x = Model(), FavorAttention(8, 32), rows(2, 20, 16)
    before = model(x)
    with sdpa_answered_by(core):
        inside = model(x)
        inside.square().sum().backward()
    after = model(x)
    q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in model.qkv(x).chunk(3, -1))
    first = favor_attention(q, k, v, core.omega, causal=True)
    needed = model.out(favor_attention(q, k, first, core.omega).transpose(1, 2).flatten(2))
    assert same_bits(inside, needed)
    assert worst(inside, before) > 1e-3
    assert same_bits(after, before)
    assert model.qkv.weight.grad.abs().max() > 0
    with sdpa_answered_by(attention_core(8, 2, feature_map="exact")):
        assert worst(model(x), before) < 1e-5


def test_calls_are_torchs_own_again_after_an_exception_and_in_other_threads():
    torch.manual_seed(0)
    model, core, x = Model(), FavorAttention(8, 32), rows(2, 20, 16)
    before = model(x)
    with pytest.raises(ConfigError, match=r"dropout is 0\.5"), sdpa_answered_by(core):
        model(x, dropout=0.5)
    assert same_bits(model(x), before)
    found = []
    with sdpa_answered_by(core):
        thread = threading.Thread(target=lambda: found.append(model(x)))
        thread.start()
        thread.join()
        with sdpa_answered_by(attention_core(8, 2, feature_map="exact")):
            assert worst(model(x), before) < 1e-5
        assert worst(model(x), before) > 1e-3
    assert same_bits(found[0], before)


@pytest.mark.parametrize("training", [False, True])
def test_torchs_own_modules_are_refused_because_their_calls_are_not_seen(training):
    layer = torch.nn.TransformerEncoderLayer(16, 2, 8, 0.0, batch_first=True).train(training)
    with torch.set_grad_enabled(training), sdpa_answered_by(FavorAttention(8, 32)):
        with pytest.raises(ConfigError, match="change it by replace_attention"):
            layer(rows(2, 9, 16))
        replace_attention(layer, num_features=32)
        assert layer(rows(2, 9, 16)).isfinite().all()


def test_exact_attention_of_this_package_stays_exact_inside_of_a_with():
    q, k, v = rows(3, 1, 2, 9, 8)
    needed = softmax_attention(q, k, v, window=2)
    with sdpa_answered_by(FavorAttention(8, 32)):
        assert same_bits(softmax_attention(q, k, v, window=2), needed)
