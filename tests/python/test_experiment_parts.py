"""What the experiments share: attentions that are written there, the text made by rules, and proteins in families."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from protperf import relatives

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
CAUSAL = ("exact", "relu", "none", "linformer", "reformer")


@pytest.fixture(scope="module")
def load():
    """Import of a module of the experiments by name."""
    sys.path.insert(0, str(EXPERIMENTS))
    yield importlib.import_module
    sys.path.remove(str(EXPERIMENTS))


def heads(length, seed=0):
    """q, k, v [2,3,L,8]."""
    return torch.randn(3, 2, 3, length, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_attention_does_not_read_what_comes_later(load, name):
    core = load("attentions").attention(name, 8, 3, max_length=100, causal=True).eval()
    q, k, v = heads(100)
    before = core(q, k, v)[:, :, :70]
    changed = [torch.cat([x[:, :, :70], x[:, :, 70:] + 1], 2) for x in (q, k, v)]
    # A hash of other rows may be cut into other chunks, so only bounds of what is seen are the same.
    if name == "reformer":
        weights = core(q, k, torch.eye(100).expand(2, 3, -1, -1))
        assert weights.triu(1).abs().max() < 1e-6
        return
    assert torch.allclose(core(*changed)[:, :, :70], before, atol=1e-5)


@pytest.mark.parametrize("name", ["exact", "relu", "linformer", "reformer"])
def test_padding_is_not_read(load, name):
    core = load("attentions").attention(name, 8, 3, max_length=64).eval()
    q, k, v = heads(64)
    padding = (torch.arange(64) >= 40).expand(2, -1)
    q2, k2, v2 = (torch.where(padding[:, None, :, None], x + 3, x) for x in (q, k, v))
    outs = [core(*x, key_padding_mask=padding)[:, :, :40] for x in ((q, k, v), (q2, k2, v2))]
    assert torch.allclose(*outs, atol=1e-5)


def test_a_reformer_with_one_chunk_is_softmax_over_keys_of_unit_norm(load):
    q, _, v = heads(40)
    core = load("attentions").Reformer(causal=True, chunk=40, num_hashes=1).eval()
    scores = q @ torch.nn.functional.normalize(q, dim=-1).mT * 8**-0.5
    scores = scores.masked_fill(torch.ones(40, 40).triu(1).bool(), -1e9)
    scores = scores.masked_fill(torch.eye(40).bool(), -1e5)
    assert torch.allclose(core(q, q, v), scores.softmax(-1) @ v, atol=1e-5)


def test_a_causal_linformer_of_one_block_is_softmax(load):
    q, k, v = heads(20)
    core = load("attentions").CausalLinformer(block=32)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(core(q, k, v), exact, atol=1e-5)


def test_words_of_a_story_are_known_after_their_first_mention(load):
    stories = load("stories")
    tokens = torch.tensor(stories.story(np.random.default_rng(0), 60))
    recalled = tokens[stories.RECALLED[tokens]]
    assert len(recalled) > 40
    assert len(recalled.unique()) == 4


def test_no_protein_of_a_held_out_family_has_a_relative_that_was_trained_on(load):
    proteins = load("proteins")
    split = proteins.split(proteins.read(load("results").GLOBINS))
    train, far = ((np.concatenate(x), np.cumsum([0, *map(len, x)])) for x in (split.train, split.far))
    indices, _ = relatives.nearest(far, train, 0.4)
    assert len(indices) > 20
    assert (indices == -1).all()


def test_masked_targets_are_residues_and_a_seventh_of_them(load):
    proteins, learning = load("proteins"), load("learning")
    sequences = proteins.read(load("results").GLOBINS, 40_000)
    batch = proteins.masked_batch(sequences, 256, torch.Generator().manual_seed(0))
    chosen = batch.targets != learning.IGNORED
    assert 0.13 < chosen.sum() / sum(map(len, sequences)) < 0.17
    assert 0.75 < (batch.tokens[chosen] == proteins.MASK).float().mean() < 0.85
    assert not (chosen & batch.padding).any()


def test_rows_of_concatenated_proteins_go_on_where_the_last_one_ended(load):
    proteins = load("proteins")
    rows = proteins.concatenated(proteins.read(load("results").GLOBINS, 5_000), 100)
    first, second = next(rows), next(rows)
    assert torch.equal(
        first.tokens[0, 1:], torch.where(first.targets == -100, first.tokens.roll(-1), first.targets)[0, :-1]
    )
    assert first.targets[0, -1] in (-100, second.tokens[0, 0])
