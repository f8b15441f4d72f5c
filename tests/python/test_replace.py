"""Modules in the place of torch's, and whole models with their attention replaced, and back."""

import pytest
import torch
from attention_inputs import same_bits, worst

import protperf
from protperf.torch.nn import (
    FavorAttention,
    MultiheadAttention,
    QKNorm,
    Rotary,
    attention_core,
    replace_attention,
    restore_attention,
    scaled_dot_product_attention,
)

EXACT = {"feature_map": "exact"}


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 10}])
def test_exact_multihead_attention_is_that_of_torch(batch_first, widths):
    theirs = torch.nn.MultiheadAttention(8, 2, batch_first=batch_first, **widths).eval()
    ours = MultiheadAttention.like(theirs, **EXACT)
    q, k, v = rows(2, 5, 8), rows(2, 5, widths.get("kdim", 8), seed=1), rows(2, 5, widths.get("vdim", 8), seed=2)
    if not batch_first:
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    causal = torch.nn.Transformer.generate_square_subsequent_mask(5)
    for options in ({}, {"attn_mask": causal}, {"key_padding_mask": padding, "need_weights": True}):
        found, needed = (f(q, k, v, **{"need_weights": False, **options}) for f in (ours, theirs))
        assert worst(found[0], needed[0]) < 1e-5
        assert (found[1] is None) == (needed[1] is None)
        assert found[1] is None or worst(found[1], needed[1]) < 1e-5
    if not widths:
        assert worst(ours(q[0], q[0], q[0])[0], theirs(q[0], q[0], q[0])[0]) < 1e-5


def test_multihead_attention_loads_and_shares_the_parameters_of_torch():
    theirs = torch.nn.MultiheadAttention(8, 2)
    ours = MultiheadAttention(8, 2, num_features=16)
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert {name.partition(".")[0] for name in missing.missing_keys} == {"core"}
    assert not missing.unexpected_keys
    shared = MultiheadAttention.like(theirs, num_features=16)
    assert all(getattr(shared, name) is p for name, p in theirs.named_parameters(recurse=False))
    assert {p.data_ptr() for p in shared.as_torch().parameters()} == {p.data_ptr() for p in theirs.parameters()}
    x = rows(5, 1, 8)
    shared(x, x, x)[0].sum().backward()
    assert theirs.in_proj_weight.grad is not None


def test_a_layer_of_torch_does_not_compute_softmax_by_itself_in_evaluation():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = rows(2, 6, 8)

    def evaluated():
        with torch.inference_mode():
            return model(x)

    softmax = evaluated()
    replace_attention(model, feature_map="relu", num_features=8)
    assert worst(evaluated(), softmax) > 1e-3
    replace_attention(model, **EXACT)
    assert worst(evaluated(), softmax) < 1e-5
    restore_attention(model)
    assert worst(evaluated(), softmax) < 1e-6
    assert not any(isinstance(module, MultiheadAttention) for module in model.modules())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: MultiheadAttention(8, 2, dropout=0.1), "dropout is 0.1"),
        (lambda x: MultiheadAttention.like(torch.nn.MultiheadAttention(8, 2, dropout=0.1)), "dropout is 0.1"),
        (lambda x: MultiheadAttention.like(torch.nn.MultiheadAttention(8, 2, add_zero_attn=True)), "add_zero_attn"),
        (lambda x: MultiheadAttention(8, 2, **EXACT)(x, x, x, attn_mask=torch.ones(5, 5)), "not the causal mask"),
        (
            lambda x: MultiheadAttention(8, 2, **EXACT)(x, x, x, key_padding_mask=torch.full((2, 5), -5.0)),
            "key_padding_mask has numbers other than 0 and -inf",
        ),
        (lambda x: scaled_dot_product_attention(x, x, x, dropout_p=0.1, core=None), "dropout is 0.1"),
        (lambda x: scaled_dot_product_attention(x, x[:1], x[:1], core=None), "enable_gqa=True"),
        (lambda x: replace_attention(torch.nn.Linear(2, 2)), "Linear has no attention"),
        (lambda x: attention_core(8, 2, feature_map="softmax"), "choose one of exact, learned, positive"),
    ],
    ids=range(9),
)
def test_what_linear_attention_cannot_do_is_refused(call, message):
    with pytest.raises(protperf.Error, match=message):
        call(rows(5, 2, 8))


# -- Models of transformers


def esm():
    from transformers import EsmConfig, EsmForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, position_embedding_type="rotary", token_dropout=False, **sizes
    )
    return EsmForMaskedLM(config)


def bert():
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForMaskedLM(BertConfig(vocab_size=33, **sizes))


def gpt():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=33, n_embd=16, n_layer=2, n_head=2, n_positions=64, use_cache=False))


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(vocab_size=33, num_key_value_heads=2, use_cache=False, **sizes))


MODELS = [esm, bert, gpt, llama]


def logits(model, padded=False):
    """Logits of two sequences; with padding, of what is not padding."""
    tokens = torch.randint(4, 30, (2, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 24, dtype=torch.long)
    if padded:
        mask[1, 15:] = 0
        tokens[1, 15:] = 1
    with torch.no_grad():
        found = model(
            input_ids=tokens,
            attention_mask=mask,
            **({"use_cache": False} if type(model).__name__.startswith(("GPT", "Llama")) else {}),
        )
    return found.logits[mask.bool()]


@pytest.fixture
def model(request):
    torch.manual_seed(0)
    made = request.param().eval()
    # Attention of weights near 0 would be the same for all that compute it.
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(10)
    return made


@pytest.mark.parametrize("model", MODELS, indirect=True, ids=lambda make: make.__name__)
def test_exact_attention_gives_the_same_logits_and_comes_back(model):
    for padded in (False, True):
        before = logits(model, padded)
        weights = {name: p.data_ptr() for name, p in model.named_parameters()}
        assert worst(logits(replace_attention(model, **EXACT), padded), before) < 1e-5
        assert worst(logits(replace_attention(model, num_features=8), padded), before) > 1e-3
        assert {name: p.data_ptr() for name, p in model.named_parameters()} == weights
        assert same_bits(logits(restore_attention(model), padded), before)


@pytest.mark.parametrize("model", [esm], indirect=True, ids=["esm"])
def test_the_error_of_favor_falls_as_the_root_of_the_features(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "query.weight" in name:
                parameter.mul_(0.2)
    before = logits(model)

    def error(num_features):
        changed = [logits(replace_attention(model, num_features=num_features, seed=seed)) for seed in range(4)]
        return sum(float((found - before).square().mean()) for found in changed) ** 0.5

    few, many = error(64), error(1024)
    # 16 times the features: 4 times less, within the scatter of four draws.
    assert 2.5 < few / many < 6.5


@pytest.mark.parametrize("model", [bert], indirect=True, ids=["bert"])
def test_dropout_of_attention_weights_is_refused_in_training(model):
    replace_attention(model, num_features=8).train()
    with pytest.raises(protperf.Error, match="attention dropout is"):
        logits(model)


def test_layers_have_directions_of_their_own_and_are_saved():
    model = replace_attention(bert(), num_features=8)
    omegas = [module.omega for module in model.modules() if isinstance(module, FavorAttention)]
    assert len(omegas) == 2
    assert omegas[0].shape == (2, 8, 8)
    assert not torch.equal(*omegas)
    assert sum(name.endswith("omega") for name in model.state_dict()) == 2


ATTENTIONS = {"exact": EXACT, "positive": {"num_features": 16}, "windowed": {"num_window_heads": 1, "window": 3}}


def generated(model, tokens, mask, use_cache):
    """Greedy tokens after a prompt, and the logits that each was chosen by."""
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    found = model.generate(
        input_ids=tokens,
        attention_mask=mask,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return found.sequences[:, tokens.shape[1] :], torch.stack(found.logits, 1)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("model", [gpt, llama], indirect=True, ids=["gpt", "llama"])
def test_generation_with_a_cache_and_left_padding_is_that_of_each_prompt_alone(model, name):
    if name == "windowed" and type(model).__name__.startswith("Llama"):
        name, options = "whole groups with a window", {"num_window_heads": 2, "window": 3}
    else:
        options = ATTENTIONS[name]
    tokens = torch.randint(4, 30, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.long)
    tokens[1, :4], mask[1, :4] = 1, 0
    softmax = generated(model, tokens, mask, use_cache=True)
    replace_attention(model, **options)
    cached, whole = (generated(model, tokens, mask, use_cache) for use_cache in (True, False))
    alone = generated(model, tokens[1:, 4:], mask[1:, 4:], use_cache=True)
    for found, needed in ((cached, whole), ([x[1:] for x in cached], alone)):
        assert torch.equal(found[0], needed[0])
        assert worst(found[1], needed[1]) < 1e-4
    if name == "exact":
        assert torch.equal(cached[0], softmax[0])
        assert worst(cached[1], softmax[1]) < 1e-4
    else:
        assert worst(cached[1], softmax[1]) > 1e-3


@pytest.mark.parametrize("model", [gpt, llama], indirect=True, ids=["gpt", "llama"])
def test_left_padding_changes_no_logit_of_a_replaced_model(model):
    replace_attention(model, num_features=16)
    tokens = torch.randint(4, 30, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :4] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        outs = []
        for content in (1, 29):
            tokens[1, :4] = content
            outs.append(model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits[1, 4:])
        alone = model(input_ids=tokens[1:, 4:]).logits[0]
    assert same_bits(*outs)
    assert worst(outs[0], alone) < 1e-4


# -- Queries and keys


def test_norms_of_queries_and_keys_bound_logits_by_the_temperature():
    norm = QKNorm(8, 4, temperature=1.5)
    with torch.no_grad():
        norm.log_temperature[3] = 0.0
    q, k = norm(100 * rows(2, 4, 9, 8), rows(2, 2, 7, 8, seed=1) / 100)
    products = (q.unflatten(1, (2, 2)) @ k[:, :, None].mT).flatten(1, 2) * 8**-0.5
    sizes = products.abs().amax((0, 2, 3))
    assert (sizes <= torch.tensor([1.5, 1.5, 1.5, 1.0]) + 1e-5).all()
    assert worst(k.norm(dim=-1) * 8**-0.25, torch.full((2, 2, 7), 1.5**0.5)) < 1e-3
    (q.sum() + k.sum()).backward()
    assert norm.log_temperature.grad.isfinite().all()
    assert QKNorm(8, 2)(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8))[0].isfinite().all()
    with pytest.raises(protperf.Error, match="temperature is 0"):
        QKNorm(8, 2, temperature=0)


def test_rotary_products_depend_on_the_distance_alone():
    rotary = Rotary(8)
    q, k = rows(1, 1, 1, 8).expand(1, 1, 6, 8), rows(1, 1, 1, 8, seed=1).expand(1, 1, 6, 8)
    a, b = rotary(q, k)
    products = (a @ b.mT)[0, 0]
    assert all(worst(products.diagonal(i), products.diagonal(i)[:1].expand(6 - i)) < 1e-5 for i in range(5))
    assert worst(rotary.rotate(q, torch.arange(3, 9))[:, :, :3], rotary.rotate(q)[:, :, 3:]) < 1e-6
    with pytest.raises(protperf.Error, match="head_dim is 7"):
        Rotary(7)
