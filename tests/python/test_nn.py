"""The module: a buffer that is saved, drawn from a seed and never redrawn by itself."""

import copy

import pytest
import torch
from attention_inputs import same_bits, tensors

import protperf
from protperf.torch import favor_attention
from protperf.torch.nn import FavorAttention, redraw_attention


def test_forward_is_favor_attention_with_its_omega():
    q, k, v, _ = tensors(1, 2, 20, dtype=torch.float32)
    module = FavorAttention(8, 32, feature_map="hyperbolic", causal=True)
    needed = favor_attention(q, k, v, module.omega, feature_map="hyperbolic", causal=True)
    assert same_bits(module(q, k, v), needed)
    assert not list(module.parameters())


def test_omega_is_saved_and_loaded():
    first, second = FavorAttention(8, 32, seed=1), FavorAttention(8, 32, seed=2)
    assert set(first.state_dict()) == {"omega", "draw_key"}
    assert set(FavorAttention(8, 32, saves_key=False).state_dict()) == {"omega"}
    assert not torch.equal(first.omega, second.omega)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.omega, second.omega)
    assert torch.equal(copy.deepcopy(first).omega, first.omega)


def test_heads_have_omegas_of_their_own_or_share_one():
    each = FavorAttention(8, 16, num_heads=2).omega
    assert each.shape == (2, 16, 8)
    assert not torch.equal(each[0], each[1])
    shared = FavorAttention(8, 16).omega
    assert torch.equal(shared, torch.from_numpy(protperf.draw_projection(16, 8)).float())


def test_redraw_is_seeded_and_in_place():
    module, twin = FavorAttention(8, 16, seed=3), FavorAttention(8, 16, seed=3)
    start, storage = module.omega.clone(), module.omega.data_ptr()
    module.redraw(1)
    assert not torch.equal(module.omega, start)
    assert module.omega.data_ptr() == storage
    module.redraw(7)
    twin.redraw(7)
    assert torch.equal(module.omega, twin.omega)
    module.redraw(0)
    assert torch.equal(module.omega, start)


@pytest.mark.parametrize("mode", [True, False])
def test_forward_never_redraws(mode):
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32)
    module = FavorAttention(8, 16).train(mode)
    start = module.omega.clone()
    outs = [module(q, k, v) for _ in range(5)]
    assert torch.equal(module.omega, start)
    assert all(same_bits(out, outs[0]) for out in outs)


def test_redraw_keeps_the_type():
    module = FavorAttention(8, 16).double()
    module.redraw(2)
    assert module.omega.dtype == torch.float64


def test_redraw_between_forward_and_backward_is_noticed():
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32, requires_grad=True)
    module = FavorAttention(8, 16)
    out = module(q, k, v).sum()
    module.redraw(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_a_module_made_in_inference_mode_works():
    """Its buffers do not count their changes."""
    needed = FavorAttention(8, 16, seed=3)
    with torch.inference_mode():
        module = FavorAttention(8, 16, seed=1)
        module.load_state_dict(needed.state_dict())
    assert torch.equal(run(module), run(needed))
    assert module.seed == 3


def test_compiles_into_one_graph():
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32)
    module = FavorAttention(8, 16, causal=True)
    assert same_bits(torch.compile(module, fullgraph=True, backend="aot_eager")(q, k, v), module(q, k, v))


def test_a_graph_reads_the_directions_of_a_redraw_and_decodes():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    module = FavorAttention(8, 16, causal=True)
    compiled = torch.compile(module.with_state, fullgraph=True, backend=backend, dynamic=True)
    for draw in range(3):
        module.redraw(draw)
        state = found = None
        for length in (5, 7):
            q, k, v, _ = tensors(1, 2, length, dtype=torch.float32)
            (needed, state), found = module.with_state(q, k, v, state), compiled(q, k, v, found and found[1])
            assert same_bits(found[0], needed)
            assert same_bits(found[1], state)
    # One with a state and one without.
    assert len(graphs) == 2


def test_layers_of_one_seed_draw_different_directions():
    first, second = FavorAttention(8, 16, layer=0), FavorAttention(8, 16, layer=1)
    assert not torch.equal(first.omega, second.omega)
    assert torch.equal(second.omega, torch.from_numpy(protperf.draw_projection(16, 8, stream=(1, 0, 0))).float())


def test_sampler_and_norm_are_chosen_by_name():
    module = FavorAttention(8, 16, sampler="iid", norm="sqrt_dim")
    drawn = protperf.draw_projection(16, 8, sampler="iid", norm="sqrt_dim")
    assert torch.equal(module.omega, torch.from_numpy(drawn).float())


def test_a_loaded_module_goes_on_with_the_draws_of_the_saved_one():
    saved, other = FavorAttention(8, 16, seed=2**63 + 5, layer=3), FavorAttention(8, 16, seed=1)
    saved.redraw(4)
    other.load_state_dict(saved.state_dict())
    other.check_omega()
    assert torch.equal(other.omega, saved.omega)
    assert (other.seed, other.layer, other.draw) == (2**63 + 5, 3, 4)
    for module in (saved, other):
        module.redraw(5)
    assert torch.equal(other.omega, saved.omega)


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dictionary_without_a_key_is_loaded_strictly(assign):
    saved = FavorAttention(8, 16, seed=7)
    saved.redraw(2)
    old = {"omega": saved.omega.clone()}
    module = FavorAttention(8, 16, seed=7)
    module.load_state_dict(old, assign=assign)
    assert torch.equal(run(module), run(saved))
    on_meta = FavorAttention(8, 16, seed=7, device="meta")
    on_meta.load_state_dict(old, assign=True)
    assert torch.equal(run(on_meta), run(saved))
    module.redraw(3)
    saved.redraw(3)
    assert torch.equal(module.omega, saved.omega)
    with pytest.raises(RuntimeError, match="omega"):
        module.load_state_dict({})


def test_a_module_that_was_loaded_goes_on_with_the_sampler_and_norm_that_were_saved():
    saved, module = FavorAttention(8, 16, sampler="iid", norm="sqrt_dim"), FavorAttention(8, 16)
    module.load_state_dict(saved.state_dict())
    for each in (saved, module):
        each.redraw(3)
    assert torch.equal(module.omega, saved.omega)
    assert (module.sampler, module.norm) == ("iid", "sqrt_dim")


def test_a_key_from_before_samplers_were_kept_leaves_the_module_its_own():
    saved, module = FavorAttention(8, 16, seed=7, sampler="iid"), FavorAttention(8, 16, sampler="iid")
    saved.redraw(2)
    state = saved.state_dict()
    # Seed, layer, draw and a checksum, as they were written before.
    state["draw_key"] = torch.tensor([7, 0, 2, -6260030330713718826])
    module.load_state_dict(state)
    module.redraw(5)
    saved.redraw(5)
    assert torch.equal(module.omega, saved.omega)
    module.load_state_dict(state)
    redraw_attention(module, torch.tensor(6), 1)
    saved.redraw(6)
    assert torch.equal(module.omega, saved.omega)


def test_samplers_and_norms_have_numbers_in_keys():
    from protperf.torch.nn import draw_key

    assert set(draw_key._SAMPLERS) == set(protperf.samplers())
    assert set(draw_key._NORMS) == set(protperf.norms())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.int32}, "dtype is torch.int32; omega needs a floating type"),
        ({"dtype": "float"}, "dtype is 'float'; omega needs a floating type"),
        ({"device": "nosuch"}, "device is 'nosuch', which torch does not know"),
        ({"layer": -1}, r"layer is -1; it must be from 0 to 2\^32 - 1"),
        ({"layer": 2**32}, r"layer is 4294967296; it must be from 0 to 2\^32 - 1"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(arguments, message):
    with pytest.raises(protperf.Error, match=message):
        FavorAttention(8, 16, **arguments)


def run(module):
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32)
    return module(q, k, v)


def poisoned(module):
    """A module whose memory holds what uninitialised memory may hold."""
    with torch.no_grad():
        module.omega.fill_(1e30)
        module.draw_key.fill_(0)
    return module


def test_a_module_on_meta_is_filled_by_to_empty_and_reset_parameters():
    needed = FavorAttention(8, 16, num_heads=2, seed=3)
    module = FavorAttention(8, 16, num_heads=2, seed=3, device="meta")
    assert module.omega.is_meta
    module.to_empty(device="cpu")
    module.reset_parameters()
    assert torch.equal(module.omega, needed.omega)


def test_memory_that_was_never_filled_is_filled_before_it_is_used():
    needed = FavorAttention(8, 16, seed=3)
    module = poisoned(FavorAttention(8, 16, seed=3, device="meta").to_empty(device="cpu"))
    assert torch.equal(run(module), run(needed))
    assert torch.equal(module.omega, needed.omega)
    skipped = poisoned(torch.nn.utils.skip_init(FavorAttention, 8, 16, seed=3))
    assert torch.equal(run(skipped), run(needed))
    with torch.device("meta"):
        on_meta = FavorAttention(8, 16, seed=3)
    # As loaders do that build on meta and find no omega in the checkpoint.
    for name, buffer in list(on_meta.named_buffers()):
        setattr(on_meta, name, torch.zeros_like(buffer, device="cpu"))
    assert torch.equal(run(on_meta), run(needed))


def test_memory_is_filled_as_soon_as_there_is_some_so_that_a_graph_may_come_first(monkeypatch):
    empty = torch.empty_like

    def garbage(x, **options):
        return empty(x, **options).fill_(77)

    needed = FavorAttention(8, 16, seed=3)
    monkeypatch.setattr(torch, "empty_like", garbage)
    module = torch.nn.utils.skip_init(FavorAttention, 8, 16, seed=3)
    monkeypatch.undo()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(run(compiled), run(needed))


def averaged_by_swa(model, averaging):
    whole = torch.nn.Sequential(torch.nn.Linear(2, 2), model)
    averaged = torch.optim.swa_utils.AveragedModel(whole, **averaging)
    averaged.update_parameters(whole)
    model.redraw(1)
    for _ in range(3):
        averaged.update_parameters(whole)
    return averaged.module[1]


@pytest.mark.parametrize("kind", ["mean", "mean of buffers", "decay of buffers", "decay of a state dictionary"])
def test_copies_for_averaging_hold_a_draw_and_never_a_mixture(kind):
    model = FavorAttention(8, 16, seed=42)
    draws = []
    for draw in (0, 1):
        model.redraw(draw)
        draws.append(model.omega.clone())
    model.redraw(0)
    if kind == "decay of a state dictionary":
        averaged = copy.deepcopy(model)
        model.redraw(1)
        for a, b in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
            a.copy_(0.9 * a + 0.1 * b)
    else:
        average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        averaging = {
            "mean": {},
            "mean of buffers": {"use_buffers": True},
            "decay of buffers": {"use_buffers": True, "multi_avg_fn": average},
        }
        averaged = averaged_by_swa(model, averaging[kind])
    run(averaged)
    assert any(torch.equal(averaged.omega, draw) for draw in draws)
    # Copied with its key where it was copied, left alone where it was averaged.
    assert torch.equal(averaged.omega, draws[1 if kind == "mean" else 0])


def test_a_changed_omega_is_kept_where_its_key_stands():
    """A caller may write directions of its own."""
    module = FavorAttention(8, 16)
    with torch.no_grad():
        module.omega.mul_(2)
    kept = module.omega.clone()
    run(module)
    assert torch.equal(module.omega, kept)


def test_modules_survive_functional_calls_and_stacking():
    modules = [FavorAttention(8, 16, seed=seed) for seed in range(3)]
    q, k, v, _ = tensors(1, 2, 9, dtype=torch.float32)
    _, buffers = torch.func.stack_module_state(modules)

    def call(buffers):
        return torch.func.functional_call(modules[0], buffers, (q, k, v))

    stacked = torch.func.vmap(call)(buffers)
    for module, found in zip(modules, stacked, strict=True):
        assert (module(q, k, v) - found).abs().max() < 1e-5
    assert modules[0].seed == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_dim": 0}, "head_dim"),
        ({"head_dim": 8, "num_features": 0}, "num_features"),
        ({"head_dim": 8, "num_heads": 0}, "num_heads"),
        ({"head_dim": 8, "feature_map": "cosine"}, "cosine"),
        ({"head_dim": 8, "seed": -1}, "seed"),
        ({"head_dim": 8, "layer": -1}, "layer"),
        ({"head_dim": 8, "sampler": "sobol"}, "sobol"),
        ({"head_dim": 8, "norm": "unit"}, "unit"),
        ({"head_dim": 8, "num_features": None}, "num_features must be an integer, not None"),
        ({"head_dim": 8.0}, "head_dim must be an integer"),
        ({"head_dim": 8, "feature_map": None}, "feature_map must be a string, not None"),
        ({"head_dim": 8, "causal": "yes"}, "causal must be True or False"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        FavorAttention(**arguments)
    assert isinstance(caught.value, protperf.Error)


@pytest.mark.parametrize("draw", [-1, 2**32, 1.5, None, True])
def test_a_draw_that_cannot_be_is_refused(draw):
    module = FavorAttention(8, 16)
    start = module.omega.clone()
    with pytest.raises(protperf.Error, match="draw"):
        module.redraw(draw)
    assert torch.equal(module.omega, start)
