"""Weights, rollouts and the diagnostic of attention that was watched in a model, against weights written out."""

import pytest
import torch
from attention_inputs import worst
from test_replace import esm

import protperf
from protperf.torch import reference
from protperf.torch.nn import FittedAttention, MultiheadAttention, attention_core, replace_attention
from protperf.torch.seeing import advice, attention_map, attention_rows, check, rollout, rollout_rows, watch

D, H = 8, 4
CORES = {
    "exact": {"feature_map": "exact"},
    "positive": {},
    "relu": {"feature_map": "relu"},
    "learned": {"feature_map": "learned"},
    "saderf": {"feature_map": "saderf"},
    "windowed": {"num_window_heads": 2, "window": 5},
}


def made(name, causal=False):
    core = attention_core(D, H, num_features=32, causal=causal, **CORES[name]).double()
    if isinstance(core, FittedAttention):
        core.observe(*inputs())
    return core


def inputs(length=30, kv_heads=H):
    gen = torch.Generator().manual_seed(0)
    shapes = ((2, H, length, D), (2, kv_heads, length, D))
    return tuple(0.5 * torch.randn(shape, generator=gen, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", CORES)
def test_rows_and_maps_are_weights_that_give_the_output(name, causal):
    core, (q, k) = made(name, causal), inputs()
    padding = torch.arange(30).expand(2, -1) >= torch.tensor([[30], [26]])
    v = torch.randn(2, H, 30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = attention_map(core, q, k, key_padding_mask=padding)
    assert worst(weights @ v, core(q, k, v, key_padding_mask=padding)) < 1e-12
    assert worst(weights.sum(-1), torch.ones(2, H, 30)) < 1e-12
    assert (weights[1, :, :, 26:] == 0).all()
    assert not causal or (weights.triu(1) == 0).all()
    rows = attention_rows(core, q, k, [29, 0, 7], key_padding_mask=padding)
    assert worst(rows, weights[:, :, [29, 0, 7]]) < 1e-12


def test_weights_are_products_of_features():
    core, (q, k) = made("positive"), inputs()
    eye = torch.eye(30, dtype=torch.float64).expand(2, H, -1, -1)
    needed = reference.favor_attention(q, k, eye, core.omega)
    assert worst(attention_map(core, q, k), needed) < 1e-12
    shared = attention_map(core, q, k[:, :2])
    assert worst(shared, attention_map(core, q, k[:, :2].repeat_interleave(2, 1))) < 1e-12
    assert worst(attention_rows(core, q, k[:, :2], [3]), shared[:, :, [3]]) < 1e-12


def test_a_map_of_more_columns_than_are_computed_at_once():
    core, (q, k) = made("positive", causal=True), inputs(300)
    weights = attention_map(core, q, k)
    assert worst(attention_rows(core, q, k, [299, 256, 255]), weights[:, :, [299, 256, 255]]) < 1e-12


class Stack(torch.nn.Module):
    """Layers of self-attention with a residual stream."""

    def __init__(self, names, causal=False):
        super().__init__()
        torch.manual_seed(0)
        options = {"num_features": 16, "causal": causal, "batch_first": True}
        self.layers = torch.nn.ModuleList(MultiheadAttention(H * D, H, **options, **CORES[name]) for name in names)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x, x, x)[0]
        return x


def watched(causal=False):
    model = Stack(["positive", "windowed", "exact", "relu"], causal).double()
    x = torch.randn(2, 40, H * D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with watch(model) as seen, torch.inference_mode():
        model(x)
    model(x)
    return seen


@pytest.mark.parametrize("causal", [False, True])
def test_a_rollout_is_the_product_of_the_maps_of_all_layers(causal):
    seen = watched(causal)
    assert [call.name for call in seen] == [f"layers.{i}.core" for i in range(4)]
    needed = torch.eye(40, dtype=torch.float64).expand(2, -1, -1)
    for call in seen:
        needed = 0.5 * (torch.eye(40, dtype=torch.float64) + call.map().mean(1)) @ needed
    assert worst(rollout(seen), needed) < 1e-12
    assert worst(rollout(seen).sum(-1), torch.ones(2, 40)) < 1e-12
    assert worst(rollout_rows(seen, [39, 5]), needed[:, [39, 5]]) < 1e-12
    assert worst(seen[1].rows([4]), seen[1].map()[:, :, [4]]) < 1e-12


def test_a_rollout_of_one_row_needs_no_square_of_the_length():
    core = made("positive")
    q, k = inputs(4000)
    model = torch.nn.ModuleList([core])
    with watch(model) as seen:
        core(q, k, q)
    (row,) = rollout_rows(seen, [17])[0]
    assert row.shape == (4000,)
    assert abs(float(row.sum()) - 1) < 1e-9
    assert float(row[17]) > 0.5


def test_the_diagnostic_reads_what_a_model_computes():
    seen = watched()
    lines = advice(seen)
    # Four heads that estimate in the first layer, two next to two with a window in the second.
    assert [line.partition(" head ")[0] for line in lines] == ["layers.0.core:"] * 4 + ["layers.1.core:"] * 2
    assert all("error" in line and "E|x+y|^2" in line for line in lines)
    regime = seen[0].regime()
    assert regime.num_features == 16
    assert (seen[0].regime(num_features=512).error < regime.error).all()
    with pytest.raises(protperf.Error, match="does not estimate softmax"):
        seen[3].regime()


def test_models_of_transformers_are_watched_by_layer():
    model = replace_attention(esm(), num_features=16).eval()
    tokens = torch.randint(4, 30, (1, 24), generator=torch.Generator().manual_seed(1))
    with watch(model) as seen:
        model(input_ids=tokens)
    assert len(seen) == 2
    assert all(call.name.endswith("protperf_core") for call in seen)
    assert worst(rollout(seen).sum(-1), torch.ones(1, 24)) < 1e-5


def test_what_cannot_be_seen_is_refused():
    core, (q, k) = made("positive"), inputs()
    with pytest.raises(protperf.Error, match="positions has 30; it must be from 0 to 29"):
        attention_rows(core, q, k, [0, 30])
    with pytest.raises(protperf.Error, match="seen is empty"):
        rollout([])
    with watch(core) as seen:
        core(q, k[:, :, :20], k[:, :, :20])
    with pytest.raises(protperf.Error, match="30 queries and 20 keys"):
        rollout(seen)


class Layers(torch.nn.Module):
    """Two layers of self-attention; queries and keys of the second one are `scale` times as large."""

    def __init__(self, scale, **options):
        super().__init__()
        self.layers = torch.nn.ModuleList(attention_core(D, H, num_features=256, **options) for _ in range(2))
        self.scale = scale

    def forward(self, q, k, key_padding_mask=None):
        out = self.layers[0](q, k, q, key_padding_mask=key_padding_mask)
        # One head alone is made large.
        large = torch.tensor([1.0, self.scale, 1.0, 1.0], dtype=q.dtype)[:, None, None]
        return out + self.layers[1](large * q, large * k, q, key_padding_mask=key_padding_mask)


def test_a_check_warns_of_the_heads_that_cannot_estimate_by_layer_and_number():
    q, k = inputs(length=60)
    model = Layers(10.0).double()
    with pytest.warns(UserWarning, match=r"layers\.1: head 1: error .*normalise q and k") as caught:
        found = check(model, q, k)
    assert [str(x.message) for x in caught] == found
    assert len(found) == 1
    # The line is that of the advice, which has one for every head.
    with watch(model) as seen:
        model(q, k)
    assert found[0] in advice(seen)
    # Nothing is said where all is well: a warning is an error in these tests.
    assert check(Layers(1.0).double(), q, k) == []


def test_a_check_takes_one_module_and_leaves_padding_out():
    q, k = inputs(length=60)
    padding = torch.arange(60).expand(2, -1) >= 40
    large = torch.where(padding[:, None, :, None], 30.0, 1.0)
    core = attention_core(D, H, num_features=256).double()
    assert check(core, large * q, large * k, q, key_padding_mask=padding) == []
    with pytest.warns(UserWarning, match=r"FavorAttention: head \d: error"):
        assert len(check(core, large * q, large * k, q)) == H
    windowed = attention_core(D, H, num_features=256, num_window_heads=2).double()
    with pytest.warns(UserWarning, match=r"WindowedHeads: head \d: error"):
        assert len(check(windowed, 10 * q, 10 * k, q)) == 2


def test_a_check_of_nothing_that_estimates_softmax_is_refused():
    q, k = inputs()
    for core in (attention_core(D, H, feature_map="relu"), attention_core(D, H, feature_map="exact")):
        with pytest.raises(protperf.Error, match="called no attention"):
            check(core.double(), q, k, q)
