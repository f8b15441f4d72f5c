"""Scores against brute force: every number has a definition, and every definition a slow twin here."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STEADY, small_config

from protperf import io
from protperf.errors import ConfigError
from protperf.lm.alphabet import BOS, EOS, MASK, VOCAB_SIZE
from protperf.lm.engine import of_targets
from protperf.lm.model.config import ATTENTIONS
from protperf.lm.model.network import CAUSAL, MASKED, ChunkState, Network
from protperf.lm.model.torch_engine import TorchEngine
from protperf.lm.scoring import estimate
from protperf.lm.scoring import likelihood as score
from protperf.lm.scoring.options import FAST_PASSES, ScoreOptions, choose_method, choose_reading


def network(attention: str = "relu", **choices: object) -> Network:
    """A network with weights large enough that its predictions differ from site to site."""
    net = Network(small_config(attention=attention, **choices)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return net


def residues(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 23, length).astype(np.uint8)


def engine(*arguments: str) -> TorchEngine:
    return TorchEngine(network(*arguments))


class Planted:
    """Predicts, with probability nearly 1, the token after the last seen one in the alphabet: a shift by one shows."""

    def computing(self, deterministic: bool) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()

    def log_probs(
        self,
        tokens: np.ndarray,
        borders: np.ndarray,
        mode: int,
        rows: np.ndarray | None = None,
        targets: np.ndarray | None = None,
    ) -> np.ndarray:
        logits = np.zeros((len(tokens), VOCAB_SIZE))
        if mode == CAUSAL:
            follows = np.where(tokens == BOS, 3, tokens.astype(int) + 1)
        else:
            # A masked site follows its left neighbour.
            left = np.concatenate([[BOS], tokens[:-1]]).astype(int)
            follows = np.where(left == BOS, 3, left + 1)
        logits[np.arange(len(tokens)), follows.clip(max=VOCAB_SIZE - 1)] = 30.0
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return of_targets(log_probs if rows is None else log_probs[rows], targets)


@pytest.mark.parametrize("method", ["ll", "pll"])
def test_a_planted_model_scores_its_own_sequence_with_certainty(method: str) -> None:
    ladder = np.arange(3, 15, dtype=np.uint8)
    records = [io.Record(0, "ladder", "", ladder, 0, "", 0), io.Record(1, "back", "", ladder[::-1].copy(), 0, "", 0)]
    good, bad = score.score_records(Planted(), records, method)
    assert good.ll == pytest.approx(0.0, abs=1e-9)
    assert bad.ll < -25 * (len(ladder) - 1)


@pytest.mark.parametrize("attention", STEADY)
def test_ll_in_chunks_is_ll_whole_is_ll_token_by_token(attention: str) -> None:
    net, x = engine(attention), residues(150)
    whole = score.log_likelihoods(net, [x])[0]
    for chunk in (1, 7, 64, 100):
        np.testing.assert_allclose(score.chunked_log_likelihoods(net, x, chunk), whole, atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_ll_is_the_sum_of_next_token_log_probabilities(attention: str) -> None:
    net, x = network(attention), residues(20)
    found = score.log_likelihoods(TorchEngine(net), [x])[0]
    for i in range(len(x)):
        prefix = torch.tensor([BOS, *x[:i].tolist()])
        with torch.no_grad():
            logits = net(prefix, torch.tensor([0, len(prefix)]), CAUSAL)[-1]
        assert found[i] == pytest.approx(float(torch.log_softmax(logits, -1)[int(x[i])]), abs=1e-5)


@pytest.mark.parametrize("attention", ["relu", "exact"])
def test_ll_in_reverse_gives_each_residue_those_after_it(attention: str) -> None:
    """In a batch, alone and in chunks; both directions are the mean."""
    net, x, y = network(attention), residues(20), residues(31, 7)
    model = TorchEngine(net)
    found, mate = score.log_likelihoods(model, [x, y], direction="reverse")
    for i in range(len(x)):
        after = torch.tensor([EOS, *x[i + 1 :][::-1].tolist()])
        with torch.no_grad():
            logits = net(after, torch.tensor([0, len(after)]), CAUSAL)[-1]
        assert found[i] == pytest.approx(float(torch.log_softmax(logits, -1)[int(x[i])]), abs=1e-5)
    np.testing.assert_allclose(score.log_likelihoods(model, [y], direction="reverse")[0], mate, atol=1e-5)
    np.testing.assert_allclose(score.chunked_log_likelihoods(model, x, 7, direction="reverse"), found, atol=1e-5)
    (forward,), (both,) = score.log_likelihoods(model, [x]), score.log_likelihoods(model, [x], direction="both")
    np.testing.assert_allclose(both, 0.5 * (forward + found), atol=1e-5)
    (row,) = score.score_records(model, [io.Record(0, "x", "", x, 0, "", 0)], "ll-both")
    assert (row.method, row.ll) == ("ll-both", pytest.approx(float(both.sum()), abs=1e-6))
    assert estimate.tokens_read(20, "ll-both") == 44


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_pll_masks_each_site_alone(attention: str) -> None:
    net, x = network(attention), residues(18)
    found = score.pseudo_log_likelihoods(TorchEngine(net), x, budget=50)
    for i in range(len(x)):
        tokens = torch.tensor([BOS, *x.tolist(), EOS])
        tokens[i + 1] = MASK
        with torch.no_grad():
            logits = net(tokens, torch.tensor([0, len(tokens)]), MASKED)[i + 1]
        assert found[i] == pytest.approx(float(torch.log_softmax(logits, -1)[int(x[i])]), abs=1e-5)


def test_scores_do_not_depend_on_batch_mates_or_order() -> None:
    net = engine()
    records = [io.Record(i, f"r{i}", "", residues(10 + 13 * i, i), 0, "", 0) for i in range(8)]
    alone = {row.id: row for row in score.score_records(net, records, "ll", deterministic=True)}
    for batch_tokens, order in ((50, 1), (200, -1), (10_000, 1)):
        for row in score.score_records(net, records[::order], "ll", batch_tokens=batch_tokens):
            assert row.ll_per_residue == pytest.approx(alone[row.id].ll_per_residue, abs=1e-5)
    for row in score.score_records(net, records[::-1], "ll", batch_tokens=77, deterministic=True):
        assert row.ll == alone[row.id].ll


def test_ambiguous_residues_are_context_and_an_empty_record_is_nan(fasta: Path) -> None:
    net = engine()
    tokens, flags = io.encode("ACXBZJUO")
    empty = io.Record(1, "none", "", np.empty(0, np.uint8), 0, "", 0)
    row, nothing = score.score_records(net, [io.Record(0, "odd", "", tokens, flags, "", 0), empty], "ll")
    assert (row.len, row.scored) == (8, 4)
    assert (nothing.len, nothing.scored) == (0, 0)
    assert math.isnan(nothing.ll)
    assert math.isnan(nothing.ppl)
    rows = list(score.score_records(net, io.scan(fasta), "ll"))
    assert [row.n for row in rows] == list(range(40))


def test_a_method_that_was_not_trained_is_refused_with_the_other_name() -> None:
    with pytest.raises(ConfigError, match="pll"):
        choose_method("masked", "ll")
    with pytest.raises(ConfigError, match="method='ll'"):
        choose_method("causal", "pll")
    assert choose_method("both", "auto") == "ll"


def test_a_direction_is_that_of_ll_and_has_to_be_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(objective="both")
    with pytest.raises(ConfigError, match="use direction='forward', or train one"):
        choose_reading(config, ScoreOptions(direction="reverse"))
    with pytest.raises(ConfigError, match="direction='both' is for method='ll'"):
        choose_reading(config, ScoreOptions(direction="both", method="pll"))
    monkeypatch.setattr("protperf.lm.direction.is_trained_in_both", lambda config: True)
    assert choose_reading(config, ScoreOptions()) == "ll"
    assert choose_reading(config, ScoreOptions(direction="both")) == "ll-both"
    assert choose_reading(config, ScoreOptions(method="pll-fast")) == "pll-fast"


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_later_token_changes_no_bit_of_an_earlier_prediction(attention: str) -> None:
    net, x = network(attention), torch.from_numpy(residues(90))
    changed = x.clone()
    changed[50] = 3 if x[50] != 3 else 4
    borders = torch.tensor([0, len(x)])
    with torch.no_grad():
        first, second = net(x, borders, CAUSAL), net(changed, borders, CAUSAL)
    if attention == "exact":
        # torch's own kernel makes no promise of bits.
        torch.testing.assert_close(first[:50], second[:50], atol=1e-6, rtol=0)
    else:
        assert torch.equal(first[:50], second[:50])
    assert not torch.equal(first[50:], second[50:])


def test_a_chunk_state_continues_where_it_stopped() -> None:
    net, x = network("softmax"), torch.from_numpy(residues(40))
    state = ChunkState()
    with torch.no_grad():
        net.continued(x[:10], torch.tensor([0, 10]), state)
        net.continued(x[10:], torch.tensor([0, 30]), state)
    assert state.positions.tolist() == [40]


@pytest.mark.parametrize("attention", STEADY)
def test_sequences_that_share_a_prefix_continue_from_copies_of_its_state(attention: str) -> None:
    """Each of them, token by token in uneven steps, as if it had been read alone from the start."""
    model, prefix = engine(attention), residues(40)
    ends = [residues(length, length) for length in (1, 17, 30)]
    state = model.empty_state()
    state.advance(prefix, np.array([0, 40]))
    several = state.select([0, 0, 0])
    parts = [[end[: min(len(end), 9)] for end in ends], [end[9:] for end in ends]]
    found = []
    for part in parts:
        borders = np.cumsum([0, *map(len, part)])
        answers = several.advance(np.concatenate(part), borders)
        found.append(np.split(answers, borders[1:-1]))
    assert several.positions.tolist() == [41, 57, 70]
    assert state.positions.tolist() == [40]
    for i, end in enumerate(ends):
        whole = np.concatenate([prefix, end])
        alone = model.log_probs(whole, np.array([0, len(whole)]), CAUSAL, np.arange(40, len(whole)))
        np.testing.assert_allclose(np.concatenate([found[0][i], found[1][i]]), alone, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, 0, 1, 2])
def test_hidden_states_of_a_layer_are_those_between_the_blocks(layer: int) -> None:
    model, x = engine(), residues(30)
    seen: list[np.ndarray] = []
    net = model.network
    places = {-1: net.norm, 0: net.blocks[0], 1: net.blocks[1], 2: net.norm}
    hooks = [
        places[layer].register_forward_hook(lambda _, given, answer: seen.append(answer if layer < 0 else given[0])),
    ]
    model.log_probs(x, np.array([0, 30]), MASKED)
    for hook in hooks:
        hook.remove()
    np.testing.assert_array_equal(model.hidden(x, np.array([0, 30]), MASKED, layer), seen[0].numpy())
    with pytest.raises(ConfigError, match="layer is 3"):
        model.hidden(x, np.array([0, 30]), MASKED, 3)


@pytest.mark.parametrize("attention", ["relu", "softmax", "exact"])
@pytest.mark.parametrize("layer", [-1, 0, 1, 2])
def test_hidden_states_may_be_read_on_from_a_state(attention: str, layer: int) -> None:
    """Those of the whole, for two sequences in uneven steps, with predictions in between."""
    model, first, second = TorchEngine(network(attention).double()), residues(40, 1), residues(23, 2)
    state = model.empty_state(2)
    parts = [state.advance_hidden(np.concatenate([first[:7], second[:9]]), np.array([0, 7, 16]), layer)]
    state.advance(first[7:20], np.array([0, 13, 13]))
    parts.append(state.advance_hidden(np.concatenate([first[20:], second[9:]]), np.array([0, 20, 34]), layer))
    for found, places in ((parts[0][:7], slice(0, 7)), (parts[1][:20], slice(20, 40))):
        whole = model.hidden(first, np.array([0, 40]), CAUSAL, layer)
        np.testing.assert_allclose(found, whole[places], atol=1e-10)
    whole = model.hidden(second, np.array([0, 23]), CAUSAL, layer)
    np.testing.assert_allclose(np.concatenate([parts[0][7:], parts[1][20:]]), whole, atol=1e-10)
    with pytest.raises(ConfigError, match="layer is 3"):
        state.advance_hidden(first[:1], np.array([0, 1, 1]), 3)


@pytest.mark.parametrize("attention", STEADY)
@pytest.mark.parametrize("method", ["ll", "pll"])
def test_float64_gives_the_scores_of_float32_with_its_rounding_errors_gone(attention: str, method: str) -> None:
    """In chunks and at once: 1e-12 in float64, where float32 is right to 1e-5 per residue."""
    single, double = network(attention), network(attention).double()
    single, double = TorchEngine(single), TorchEngine(double)
    x = residues(120)
    if method == "ll":
        (ours,), (exact,) = score.log_likelihoods(single, [x]), score.log_likelihoods(double, [x])
        np.testing.assert_allclose(score.chunked_log_likelihoods(double, x, 17), exact, atol=1e-12, rtol=0)
    else:
        ours, exact = score.pseudo_log_likelihoods(single, x), score.pseudo_log_likelihoods(double, x)
        np.testing.assert_allclose(score.pseudo_log_likelihoods(double, x, 1), exact, atol=1e-12, rtol=0)
    worst = np.abs(ours - exact).max()
    assert 1e-12 < worst < 1e-5


def test_the_norms_of_float64_are_those_of_float32() -> None:
    """torch's own epsilon depends on the type: near zero, where embeddings begin, it decides what a norm gives."""
    single, double = Network(small_config()), Network(small_config()).double()
    x = 3e-4 * torch.randn(5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ours, exact in zip(single.modules(), double.modules(), strict=True):
        if isinstance(ours, torch.nn.RMSNorm):
            torch.testing.assert_close(ours(x.float()).double(), exact(x), rtol=1e-6, atol=0)


@pytest.mark.parametrize("attention", ["relu", "exact"])
def test_pll_fast_masks_every_sixteenth_scored_site_together(attention: str) -> None:
    net, x = network(attention), residues(50)
    x[[3, 20]] = io.encode("XB")[0]
    found = score.pseudo_log_likelihoods(TorchEngine(net), x, budget=120, fast=True)
    scored = [i for i in range(50) if i not in (3, 20)]
    for place, site in enumerate(scored):
        tokens = torch.tensor([BOS, *x.tolist(), EOS])
        tokens[torch.tensor(scored[place % FAST_PASSES :: FAST_PASSES]) + 1] = MASK
        with torch.no_grad():
            logits = net(tokens, torch.tensor([0, len(tokens)]), MASKED)[site + 1]
        assert found[site] == pytest.approx(float(torch.log_softmax(logits, -1)[int(x[site])]), abs=1e-5)
    assert np.isnan(found[[3, 20]]).all()


def test_pll_fast_of_a_short_sequence_is_pll() -> None:
    model, x = engine(), residues(FAST_PASSES)
    fast, slow = score.pseudo_log_likelihoods(model, x, fast=True), score.pseudo_log_likelihoods(model, x)
    np.testing.assert_array_equal(fast, slow)
    assert estimate.tokens_read(16, "pll-fast") == estimate.tokens_read(16, "pll") == 16 * 18
    assert estimate.tokens_read(1000, "pll-fast") == 16 * 1002
    assert "+0.000 nats per residue" in str(estimate.measure_bias(model, x))
    assert estimate.measure_bias(model, x[:0]) is None


def test_residues_of_a_sequence_sum_to_its_score() -> None:
    model = engine()
    tokens, flags = io.encode("ACXDEU")
    records = [io.Record(0, "a", "", tokens, flags, "", 0), io.Record(1, "none", "", tokens[:0], 0, "", 0)]
    ((first, second),) = score.score_batches(model, records, "ll")
    rows = score.residue_rows(*first, "ll")
    assert [(row.pos, row.residue) for row in rows] == list(enumerate("ACXDEU", 1))
    assert [math.isnan(row.ll) for row in rows] == [letter == "X" for letter in "ACXDEU"]
    assert math.fsum(row.ll for row in rows if row.residue != "X") == score.sequence_row(*first, "ll").ll
    (empty,) = score.residue_rows(*second, "ll")
    assert (empty.n, empty.pos, empty.residue) == (1, 0, "")
    assert math.isnan(empty.ll)
