"""Whole networks: against torch's own, in parts against whole, drawing tokens, and the weights of performer-pytorch."""

import pytest
import torch
from attention_inputs import same_bits, worst
from torch.nn import functional

import protperf
from protperf.torch import favor_attention
from protperf.torch.nn import (
    Performer,
    PerformerLM,
    from_performer_pytorch,
    language_model_from_performer_pytorch,
    performer_from_performer_pytorch,
)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(*shape, seed=0, below=11):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def encoder_of_torch(model):
    """An encoder of torch with the weights of a `Performer` of exact attention."""
    layers = []
    for ours in model.layers:
        inner, width = ours.feed_forward.wide.weight.shape
        layer = torch.nn.TransformerEncoderLayer(
            width, ours.attention.num_heads, inner, 0.0, "gelu", batch_first=True, norm_first=True
        )
        attention, projections = layer.self_attn, [getattr(ours.attention, f"{name}_proj") for name in "qkv"]
        with torch.no_grad():
            attention.in_proj_weight.copy_(torch.cat([x.weight for x in projections]))
            attention.in_proj_bias.copy_(torch.cat([x.bias for x in projections]))
        attention.out_proj = ours.attention.out_proj
        layer.norm1, layer.norm2 = ours.attention_norm, ours.feed_forward_norm
        layer.linear1, layer.linear2 = ours.feed_forward.wide, ours.feed_forward.narrow
        layers.append(layer)

    def run(x, mask):
        for layer in layers:
            x = layer(x, src_key_padding_mask=mask)
        return x

    return run


def test_with_exact_attention_it_is_the_encoder_of_torch():
    model, x = Performer(8, 2, 2, dim_feedforward=20, feature_map="exact"), rows(2, 7, 8)
    padding = torch.arange(7).expand(2, -1) >= torch.tensor([[7], [5]])
    found, needed = model(x, key_padding_mask=padding), encoder_of_torch(model)(x, padding)
    assert worst(found[0], needed[0]) < 1e-5
    assert worst(found[1, :5], needed[1, :5]) < 1e-5


@pytest.mark.parametrize(
    "options",
    [{}, {"feature_map": "relu"}, {"num_window_heads": 1, "window": 2}, {"feature_map": "learned"}, {"gated": True}],
    ids=["positive", "relu", "window", "learned", "gated"],
)
@pytest.mark.parametrize("max_length", [None, 20])
def test_a_sequence_in_parts_equals_the_whole(options, max_length):
    model = PerformerLM(11, 8, 2, 2, causal=True, num_features=16, max_length=max_length, **options).double()
    x = tokens(2, 13)
    whole, parts, state = model(x), [], None
    for part in x.split([5, 1, 1, 6], 1):
        found, state = model.with_state(part, state)
        parts.append(found)
    assert worst(torch.cat(parts, 1), whole) < 1e-9
    assert state.length == 13


def test_a_context_is_read_from_the_state_like_the_context_itself():
    model = PerformerLM(11, 8, 2, 2, causal=True, cross_attention=True, num_features=16).double()
    x, context, padding = tokens(2, 6), rows(2, 9, 8).double(), torch.arange(9).expand(2, -1) >= 7
    whole = model(x, context, context_padding_mask=padding)
    assert worst(whole, model(x, context[:, :7])) < 1e-9
    assert worst(whole, model(x, context)) > 1e-6
    first, state = model.with_state(x[:, :4], context=context, context_padding_mask=padding)
    second, _ = model.with_state(x[:, 4:], state)
    assert worst(torch.cat([first, second], 1), whole) < 1e-9


def test_with_rotations_exact_attention_depends_on_distances_alone():
    model = PerformerLM(11, 8, 2, 2, causal=True, feature_map="exact").double()
    x = tokens(1, 9)
    later = torch.cat([tokens(1, 40, seed=1), x], 1)
    found = model(later, key_padding_mask=torch.arange(49)[None] < 40)[:, 40:]
    assert worst(found, model(x)) < 1e-8
    assert worst(model(x.flip(1)).flip(1), model(x)) > 1e-3


def test_every_parameter_learns_and_a_small_task_is_learnt():
    model = PerformerLM(11, 32, 2, 4, max_length=8, causal=True, cross_attention=True, num_features=32)
    encoder = PerformerLM(11, 32, 2, 4, max_length=8, num_features=32)
    optimizer = torch.optim.AdamW([*model.parameters(), *encoder.parameters()], 5e-3)
    losses = []
    for step in range(300):
        x = tokens(32, 8, seed=step)
        # The task of performer-pytorch's example: copy the source.
        source, target = x, torch.cat([torch.zeros_like(x[:, :1]), x], 1)
        logits = model(target[:, :-1], encoder.hidden(source))
        loss = functional.cross_entropy(logits.mT, target[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        unread = ("head", "embedding") if step else ()
        for name, parameter in (*model.named_parameters(), *encoder.named_parameters()):
            assert parameter.grad is not None or name.startswith(unread), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses[::20]


# -- Drawing tokens


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    made = PerformerLM(11, 8, 2, 2, causal=True, num_features=16, dropout=0.5, rotary=True, max_length=30)
    # Far from uniform, so that a cut of the tail has something to cut.
    with torch.no_grad():
        made.embedding.weight.mul_(40)
    return made


def test_temperature_0_takes_the_likeliest_token_of_the_whole_sequence_so_far(model):
    x = tokens(3, 4)
    found, so_far = model.generate(x, 9, temperature=0), x
    assert model.training, "dropout comes back"
    model.eval()
    for _ in range(9):
        so_far = torch.cat([so_far, model(so_far)[:, -1:].argmax(-1)], 1)
    model.train()
    assert same_bits(found, so_far[:, 4:])
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}):
        assert same_bits(model.generate(x, 9, **narrow), found)


def test_tokens_are_drawn_by_their_probability(model):
    x, number = tokens(1, 4), 4000
    model.eval()
    probabilities = (model(x)[0, -1] / 0.7).softmax(-1)
    model.train()

    def frequencies(**options):
        drawn = model.generate(
            x.expand(number, -1), 1, temperature=0.7, generator=torch.Generator().manual_seed(3), **options
        )
        return torch.bincount(drawn.flatten(), minlength=11) / number

    # Five standard deviations of a frequency at most.
    assert (frequencies() - probabilities).abs().max() < 5 * 0.5 / number**0.5
    largest = probabilities.sort(descending=True)
    kept = torch.zeros(11).index_fill(0, largest.indices[:3], 1) * probabilities
    assert (frequencies(top_k=3) - kept / kept.sum()).abs().max() < 5 * 0.5 / number**0.5
    assert torch.equal(frequencies(top_k=3) > 0, kept > 0)
    two = largest.values[:2].sum().item() - 1e-4
    assert torch.count_nonzero(frequencies(top_p=two)) == 2
    assert torch.equal(frequencies(), frequencies())


def test_a_sequence_ends_with_its_end(model):
    x = tokens(3, 4)
    free = model.generate(x, 12, temperature=0)
    end = free[0, 2].item()
    found = model.generate(x, 12, temperature=0, end=end)
    for row, whole in zip(found, free, strict=True):
        first = (whole == end).nonzero()
        last = first[0].item() if len(first) else 12
        assert same_bits(row[: last + 1], whole[: last + 1][: found.shape[1]])
        assert (row[last:] == end).all()
    alone = model.generate(x[:1], 12, temperature=0, end=end)
    assert alone.shape[1] == (free[0] == end).nonzero()[0].item() + 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate(tokens(2, 0), 3), r"tokens is \[2, 0\]; it must be \[B,T\] with at least one token"),
        (lambda m: m.generate(tokens(2, 3), 0), "length is 0; it must be at least 1"),
        (lambda m: m.generate(tokens(2, 3), 3, temperature=-1), "temperature is -1; it must be at least 0"),
        (lambda m: m.generate(tokens(2, 3), 3, top_p=0), "top_p is 0; it must be above 0 and at most 1"),
        (lambda m: m.generate(tokens(2, 3), 3, top_k=0), "top_k is 0; it must be at least 1"),
        (lambda m: m.generate(tokens(2, 3), 40), "31 positions, but max_length is 30"),
        (lambda m: m(tokens(2)), r"tokens is \[2\]; it must be \[B,L\]"),
        (lambda m: m(tokens(1, 2), rows(1, 2, 8)), "say cross_attention=True"),
        (lambda m: m.performer(rows(1, 2, 9)), r"x is \[1, 2, 9\]; it must be \[B,L,8\]"),
        (lambda _: Performer(9, 1, 2), "embed_dim 9 is not a multiple of num_heads 2; give head_dim"),
        (lambda _: Performer(8, 0, 2), "num_layers is 0; it must be at least 1"),
        (lambda _: Performer(8, 1, 2, cross_attention=True)(rows(1, 2, 8)), "no context was given"),
        (lambda _: PerformerLM(5, 8, 1, 2).generate(tokens(1, 2, below=5), 3), "say causal=True"),
        (
            lambda _: PerformerLM(5, 8, 1, 2, causal=True, feature_map="exact").generate(tokens(1, 2, below=5), 3),
            "exact attention keeps no state to continue from; choose another feature_map",
        ),
    ],
)
def test_mistakes_are_named(model, call, message):
    with pytest.raises(protperf.Error, match=message):
        call(model)
    assert model.training


# -- Weights of performer-pytorch


def attention_state(prefix, dim=8, head_dim=4, features=6):
    """The names and shapes of its attention layers of two heads."""
    inner = 2 * head_dim
    state = {f"{prefix}to_{name}.weight": rows(inner, dim, seed=i) for i, name in enumerate("qkv")}
    return state | {
        f"{prefix}to_out.weight": rows(dim, inner, seed=4),
        f"{prefix}to_out.bias": rows(dim, seed=5),
        f"{prefix}fast_attention.projection_matrix": rows(features, head_dim),
    }


def performer_state(prefix="", depth=2, dim=8, head_dim=4, gated=False):
    """Those of a `Performer`."""
    state = {}
    for i in range(depth):
        start = f"{prefix}net.layers.{i}."
        state |= attention_state(f"{start}0.fn.", dim, head_dim)
        wide = (8 if gated else 4) * dim
        sizes = {"0.norm": (dim,), "1.norm": (dim,), "1.fn.fn.w1": (wide, dim), "1.fn.fn.w2": (dim, 4 * dim)}
        for seed, (name, shape) in enumerate(sizes.items()):
            state[f"{start}{name}.weight"] = rows(*shape, seed=10 * i + seed) * shape[-1] ** -0.5
            state[f"{start}{name}.bias"] = rows(shape[0], seed=100 + 10 * i + seed)
    again = {name.replace("net.layers.", "proj_updater.instance.layers."): value for name, value in state.items()}
    return state | again | {f"{prefix}proj_updater.calls_since_last_redraw": torch.tensor(3)}


def language_model_state(rotary, tied, head_dim=4, num_tokens=11, length=20):
    """Those of a `PerformerLM`."""

    def sines(width):
        angles = torch.outer(torch.arange(length), 10000 ** -(torch.arange(0, width, 2) / width))
        return torch.cat([angles.sin(), angles.cos()], 1)

    state = performer_state("performer.", head_dim=head_dim)
    state |= {"token_emb.weight": rows(num_tokens, 8, seed=60), "norm.weight": rows(8, seed=70)}
    state["norm.bias"] = rows(8, seed=71)
    if rotary:
        state |= {"pos_emb.emb": sines(8), "layer_pos_emb.emb": sines(head_dim)}
    else:
        state["pos_emb.emb.weight"] = rows(length, 8, seed=61)
    if not tied:
        state |= {"to_out.weight": rows(num_tokens, 8, seed=62), "to_out.bias": rows(num_tokens, seed=63)}
    return state


class Written:
    """What performer-pytorch computes from a state dictionary, but for what it adds to features."""

    def __init__(self, state, prefix=""):
        self.state, self.prefix = state, prefix

    def norm(self, name, x):
        weight, bias = (self.state[f"{self.prefix}{name}.{kind}"] for kind in ("weight", "bias"))
        return functional.layer_norm(x, x.shape[-1:], weight, bias)

    def linear(self, name, x):
        bias = self.state.get(f"{self.prefix}{name}.bias")
        return functional.linear(x, self.state[f"{self.prefix}{name}.weight"], bias)

    def attention(self, name, x, context, sines, causal, feature_map="positive"):
        omega = self.state[f"{self.prefix}{name}.fast_attention.projection_matrix"]
        inputs = {"q": x, "k": context, "v": context}
        q, k, v = (
            self.linear(f"{name}.to_{kind}", y).unflatten(2, (-1, omega.shape[1])).transpose(1, 2)
            for kind, y in inputs.items()
        )
        if sines is not None:
            sin, cos = (y.repeat_interleave(2, -1) for y in sines[: x.shape[1]].chunk(2, -1))
            q, k = (y * cos + torch.stack([-y[..., 1::2], y[..., ::2]], -1).flatten(-2) * sin for y in (q, k))
        out = favor_attention(q, k, v, omega, feature_map=feature_map, causal=causal)
        return self.linear(f"{name}.to_out", out.transpose(1, 2).flatten(2))

    def layer(self, i, x, context=None, sines=None, causal=False, gated=False):
        y = self.norm(f"net.layers.{i}.0.norm", x)
        x = x + self.attention(f"net.layers.{i}.0.fn", y, y if context is None else context, sines, causal)
        y = self.linear(f"net.layers.{i}.1.fn.fn.w1", self.norm(f"net.layers.{i}.1.norm", x))
        y = functional.gelu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1] if gated else functional.gelu(y)
        return x + self.linear(f"net.layers.{i}.1.fn.fn.w2", y)


@pytest.mark.parametrize("generalized", [False, True])
def test_layers_of_performer_pytorch_are_loaded_with_their_directions(generalized):
    state, x = attention_state("net.0."), rows(2, 7, 8, seed=9)
    found = from_performer_pytorch(state, "net.0.", generalized=generalized)(x, x, x)[0]
    feature_map = "relu" if generalized else "positive"
    assert worst(found, Written(state).attention("net.0", x, x, None, False, feature_map)) < 1e-5


@pytest.mark.parametrize("gated", [False, True])
def test_a_whole_network_of_performer_pytorch_is_loaded(gated):
    state, x = performer_state(gated=gated), rows(2, 7, 8, seed=9)
    needed = x
    for i in range(2):
        needed = Written(state).layer(i, needed, causal=True, gated=gated)
    assert worst(performer_from_performer_pytorch(state, causal=True)(x), needed) < 1e-5
    wrapped = {f"module.{name}": value for name, value in state.items()}
    assert worst(performer_from_performer_pytorch(wrapped, "module.", causal=True)(x), needed) < 1e-5


def test_layers_that_attend_to_a_context_are_loaded():
    state, x, context = performer_state(depth=4), rows(2, 7, 8, seed=9), rows(2, 5, 8, seed=8)
    needed, written = x, Written(state)
    for i in range(4):
        needed = written.layer(i, needed, context=context) if i % 2 else written.layer(i, needed, causal=True)
    model = performer_from_performer_pytorch(state, cross_attention=True, causal=True)
    assert worst(model(x, context), needed) < 1e-5
    odd = {name: value for name, value in state.items() if not name.startswith("net.layers.3.")}
    with pytest.raises(protperf.Error, match="3 layers; with cross_attention=True every second one"):
        performer_from_performer_pytorch(odd, cross_attention=True)


@pytest.mark.parametrize(("rotary", "tied", "head_dim"), [(True, False, 4), (False, True, 4), (True, True, 6)])
def test_a_language_model_of_performer_pytorch_is_loaded_with_its_positions(rotary, tied, head_dim):
    state, x = language_model_state(rotary, tied, head_dim), tokens(2, 7)
    written, places = Written(state, "performer."), state["pos_emb.emb" if rotary else "pos_emb.emb.weight"]
    needed = state["token_emb.weight"][x] + places[:7]
    for i in range(2):
        needed = written.layer(i, needed, sines=state["layer_pos_emb.emb"] if rotary else None, causal=True)
    needed = Written(state).norm("norm", needed)
    needed = needed @ state["token_emb.weight"].T if tied else Written(state).linear("to_out", needed)
    model = language_model_from_performer_pytorch(state, causal=True)
    assert worst(model(x), needed) < 1e-5
    assert model.positions.weight.requires_grad != rotary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "0.norm" not in k}, r"no performer.net.layers.0.0.norm.weight"),
        (lambda s: s | {"performer.net.layers.1.0.g": rows(1)}, r"performer.net.layers.1.0.g, which has no form here"),
        (lambda s: s | {"performer.net.layers.0.0.fn.local_attn.rel_pos": rows(1)}, "local_attn.rel_pos, which has no"),
        (lambda s: {k.replace("net.layers", "net.blocks"): v for k, v in s.items()}, "no performer.net.layers.0.0.fn"),
        (lambda s: {k.replace("pos_emb.emb", "pos_emb.weights"): v for k, v in s.items()}, "no pos_emb.emb.weight"),
        (lambda s: s | {"performer.net.layers.1.1.fn.fn.w1.weight": rows(9, 8)}, r"w1.weight is \[9, 8\]; \[32, 8\]"),
        (lambda s: {f"model.{k}": v for k, v in s.items()}, "no token_emb.weight; its attention layers are model."),
    ],
    ids=["rezero", "gain", "local", "reversible", "axial", "shape", "prefix"],
)
def test_what_is_not_a_language_model_of_performer_pytorch_is_refused(change, message):
    with pytest.raises(protperf.Error, match=message):
        language_model_from_performer_pytorch(change(language_model_state(True, False)))


def test_what_is_not_a_layer_of_performer_pytorch_is_refused():
    state = attention_state("net.0.")
    with pytest.raises(protperf.Error, match=r"no net.1.to_q.weight; its attention layers are net.0."):
        from_performer_pytorch(state, "net.1.")
    with pytest.raises(protperf.Error, match="local attention"):
        from_performer_pytorch(state | {"net.0.local_attn.rel_pos": rows(1)}, "net.0.")
    wide = {name: torch.cat([x, x]) if "to_q" in name else x for name, x in state.items()}
    with pytest.raises(protperf.Error, match="to_q has 16 rows"):
        from_performer_pytorch(wide, "net.0.")
