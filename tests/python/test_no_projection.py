"""Feature maps without directions, and what is added to features, in modules."""

import copy

import pytest
import torch
from attention_inputs import same_bits, tensors, worst

import protperf
from protperf.torch import favor_attention, reference
from protperf.torch.nn import FavorAttention, WindowedHeads, attention_core, redraw_attention

INPUT_MAPS = ["relu", "elu1", "sigmoid", "square"]


def run(module):
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32)
    return module(q, k, v)


@pytest.mark.parametrize("epsilon", [None, 0.5])
@pytest.mark.parametrize("feature_map", INPUT_MAPS)
def test_without_a_projection_maps_are_applied_to_queries_and_keys_themselves(feature_map, epsilon):
    q, k, v, _ = tensors(2, 4, 20, kv_heads=2, e=3)
    module = FavorAttention(8, 99, num_heads=4, feature_map=feature_map, projection=False, kernel_epsilon=epsilon)
    options = {"feature_map": feature_map, "kernel_epsilon": epsilon}
    for causal in (False, True):
        needed = reference.favor_attention(q, k, v, None, causal=causal, **options)
        assert worst(module(q, k, v, causal=causal), needed) < 1e-12
    first, state = module.with_state(*(x[:, :, :13] for x in (q, k, v)))
    last, after = module.with_state(*(x[:, :, 13:] for x in (q, k, v)), state)
    assert worst(torch.cat([first, last], 2), needed) < 1e-12
    assert after.shape == (2, 4, 8, 2 + 3)
    assert module.num_features == 8


@pytest.mark.parametrize("with_state", [False, True])
def test_what_is_added_to_features_reaches_every_call(with_state):
    q, k, v, _ = tensors(1, 2, 20)
    plain, module = (FavorAttention(8, 16, feature_map="relu", kernel_epsilon=x).double() for x in (None, 0.25))
    needed = reference.favor_attention(q, k, v, module.omega, feature_map="relu", causal=True, kernel_epsilon=0.25)
    calls = [lambda m: m.with_state(q, k, v)[0]] if with_state else [lambda m: m(q, k, v, causal=True)]
    for call in calls:
        assert worst(call(module), needed) < 1e-12
        assert worst(call(plain), needed) > 1e-3


def test_a_module_without_a_projection_has_nothing_to_draw_save_or_fill():
    module = FavorAttention(8, feature_map="relu", projection=False, kernel_epsilon=0.1)
    assert not module.state_dict()
    assert not list(module.buffers())
    assert "projection=False, kernel_epsilon=0.1" in repr(module)
    assert "projection=True, kernel_epsilon=None" in repr(FavorAttention(8))
    module.load_state_dict({})
    with pytest.raises(RuntimeError, match="omega"):
        module.load_state_dict(FavorAttention(8, feature_map="relu").state_dict())
    module.reset_parameters()
    other = copy.deepcopy(module).double().to_empty(device="cpu")
    assert same_bits(run(other), run(module))
    model = torch.nn.ModuleList([module, FavorAttention(8)])
    assert redraw_attention(model, 30, 10) == 3
    assert model[1].draw == 3
    with pytest.raises(protperf.Error, match="no directions to draw"):
        module.redraw(1)


def test_cores_pass_both_arguments_on():
    q, k, v, _ = tensors(1, 4, 20, dtype=torch.float32)
    options = {"feature_map": "relu", "projection": False, "kernel_epsilon": 0.2}
    core = attention_core(8, 4, causal=True, **options)
    assert isinstance(core, FavorAttention)
    needed = favor_attention(q, k, v, None, feature_map="relu", kernel_epsilon=0.2, causal=True)
    assert same_bits(core(q, k, v), needed)
    mixed = attention_core(8, 4, num_window_heads=1, window=3, causal=True, **options)
    assert isinstance(mixed, WindowedHeads)
    assert same_bits(mixed(q, k, v)[:, :3], needed[:, :3])
    assert same_bits(torch.compile(core, fullgraph=True, backend="eager")(q, k, v), needed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"projection": False}, "feature_map 'positive' needs directions; choose one of relu, elu1"),
        ({"projection": False, "feature_map": "exp"}, "feature_map 'exp' needs directions"),
        ({"projection": False, "feature_map": "trigonometric"}, "feature_map 'trigonometric' needs directions"),
        ({"projection": "no", "feature_map": "relu"}, "projection must be True or False"),
        ({"kernel_epsilon": 0.1}, "feature_map 'positive' takes none"),
        ({"kernel_epsilon": -1.0, "feature_map": "relu"}, "kernel_epsilon is -1"),
        ({"kernel_epsilon": "1", "feature_map": "relu"}, "kernel_epsilon must be a number"),
    ],
    ids=range(7),
)
def test_maps_that_need_directions_or_take_no_epsilon_are_refused(arguments, message):
    with pytest.raises(protperf.Error, match=message):
        FavorAttention(8, 16, **arguments)
    if arguments.get("feature_map") != "trigonometric":
        with pytest.raises(protperf.Error, match=message):
            attention_core(8, 2, **arguments)


def test_the_functions_refuse_a_missing_omega_and_name_what_draws_one():
    q, k, v, _ = tensors(1, 2, 5)
    for feature_map in ("positive", "exp", "fourier"):
        with pytest.raises(protperf.Error, match=f"omega is needed by feature_map '{feature_map}'; draw it with"):
            favor_attention(q, k, v, None, feature_map=feature_map)
