"""Recipes: each is a file of options, and what is named takes the place of what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import in_process, write_fasta
from conftest import LETTERS, small_config

import protperf.lm as lm
from protperf.errors import ConfigError
from protperf.lm.data import kind
from protperf.lm.data.store import read_store
from protperf.lm.options import pick
from protperf.lm.training.options import RunOptions
from protperf.lm.training.recipe import RECIPES, default_steps, expectation, with_recipe
from protperf.lm.training.request import read_request


def test_a_family_is_read_both_ways_by_weight_from_varied_starts(tmp_path: Path) -> None:
    request = read_request(tmp_path / "run", {"recipe": "family", "steps": 3})
    found = request.config, request.options
    assert (found[0].attention, found[0].objective, found[0].directions) == ("exact", "causal", "both")
    assert (found[1].starts, found[1].weights, found[1].optimizer) == ("varied", "relatives", "muon")


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in ("auto", "plain")])
def test_the_help_says_what_a_recipe_sets(recipe: str) -> None:
    (option,) = pick(RunOptions, "recipe")
    # The sentence of the recipe, up to the next one.
    said = option.help.partition(f"{recipe}")[2].partition(". ")[0]
    values = with_recipe(recipe, {})
    assert values
    assert [f"--{name.replace('_', '-')} {value}" in said for name, value in values.items()] == [True] * len(values)
    assert said.count("--") == len(values)
    assert expectation(recipe)


def test_what_is_named_takes_the_place_of_the_recipe(tmp_path: Path) -> None:
    request = read_request(tmp_path, {"recipe": "family", "steps": 3, "weights": "equal", "objective": "both"})
    assert (request.options.weights, request.options.starts) == ("equal", "varied")
    assert (request.config.objective, request.config.directions) == ("both", "both")
    masked = read_request(tmp_path, {"recipe": "family", "steps": 3, "objective": "masked"})
    assert (masked.config.directions, masked.options.weights) == ("forward", "relatives")


def test_a_family_starts_with_the_model_that_ships_unless_another_network_is_named(tmp_path: Path) -> None:
    def start(**given: Any) -> tuple[str | None, str]:
        request = read_request(tmp_path, {"recipe": "family", "steps": 3, **given})
        return request.options.init, request.config.attention

    assert start() == start(seed=3, weights="equal") == start(init="builtin:nano") == ("builtin:nano", "exact")
    assert start(init="none") == start(size="tiny") == (None, "exact")
    assert start(attention="relu") == (None, "relu")
    assert start(num_features=32, attention="softmax") == (None, "softmax")
    assert start(objective="masked")[0] is None


def records(path: Path, count: int, members: int) -> Path:
    """Proteins of 60 residues, in families of some members."""
    rng = np.random.default_rng(3)
    ancestors = rng.choice(list(LETTERS), (count, 60))
    found = {}
    for i in range(count):
        kept = rng.random(60) < 0.8
        found[f"p{i}"] = "".join(np.where(kept, ancestors[i // members], rng.choice(list(LETTERS), 60)))
    return write_fasta(path, found)


@pytest.mark.parametrize(
    ("count", "members", "expected"),
    [(120, 120, "family"), (600, 3, "proteome"), (99, 99, "plain"), (700, 1, "corpus")],
)
def test_the_data_chooses_the_recipe(
    count: int, members: int, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "_CORPUS_RESIDUES", 650 * 60)
    found = kind.kind_of(read_store(records(tmp_path / "in.fa", count, members)))
    assert found.name == expected
    assert ("fewer than 100" in found.why) == (expected == "plain")


def test_a_run_takes_the_recipe_of_its_data_and_keeps_it(tmp_path: Path) -> None:
    path = records(tmp_path / "in.fa", 120, 120)
    size = tmp_path / "size.toml"
    sizes = {name: value for name, value in small_config().to_mapping().items() if name.startswith(("num", "model"))}
    sizes |= {"head_dim": 8, "ffn_dim": 8}
    size.write_text("".join(f"{name} = {value}\n" for name, value in sizes.items()))
    words = ["train", "--fasta", path, "-o", tmp_path / "run", "--size", size, "--steps", 1, "--batch-tokens", 200]
    messages = in_process(*words, "--starts", "whole").stderr.decode()
    assert "note: recipe family, because 100% of its sequences have a relative" in messages
    assert "--recipe plain keeps the defaults" in messages
    facts = json.loads(in_process("info", tmp_path / "run", "--json").stdout)
    assert (facts["objective"], facts["directions"]) == ("causal", "both")
    again = in_process("train", "--fasta", path, "-o", tmp_path / "run", "--resume", "--steps", 2)
    assert (again.returncode, "note: recipe" in again.stderr.decode()) == (0, False)
    stored = json.loads((tmp_path / "run" / "step-2" / "manifest.json").read_bytes())["options"]
    assert (stored["starts"], stored["weights"]) == ("whole", "relatives")


def test_an_unknown_recipe_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recipe is 'families'"):
        read_request(tmp_path, {"recipe": "families", "steps": 3})


def test_a_recipe_says_how_long_to_train_where_nothing_else_does(tmp_path: Path) -> None:
    for recipe in RECIPES:
        found = read_request(tmp_path / "run", {"recipe": recipe})
        assert (found.options.steps, found.options.time_s) == (default_steps(recipe), None)
        few, many = default_steps(recipe, 1.0), default_steps(recipe, 1e6)
        assert 0 < few < many == default_steps(recipe)
    timed = read_request(tmp_path / "run", {"recipe": "family", "time_s": 60.0}).options
    assert (timed.steps, timed.epochs, timed.time_s) == (None, None, 60.0)


def test_a_small_family_is_trained_with_dropout_unless_another_is_named(tmp_path: Path) -> None:
    assert "dropout" not in with_recipe("family", {}, 1_000_000)
    assert with_recipe("family", {}, 999_999)["dropout"] == with_recipe("family", {}, 300_000)["dropout"] == 0.1
    assert with_recipe("family", {}, 299_999)["dropout"] == 0.3
    assert with_recipe("family", {"dropout": 0.0}, 299_999)["dropout"] == 0.0
    path, size = records(tmp_path / "in.fa", 120, 120), tmp_path / "size.toml"
    size.write_text("num_layers = 1\nmodel_dim = 8\nnum_heads = 1\nhead_dim = 8\nffn_dim = 8\nnum_features = 8\n")
    given = {"size": str(size), "batch_tokens": 200, "recipe": "family", "steps": 1}
    read_request(tmp_path / "run", given).train(path, tmp_path / "run")
    assert lm.load(tmp_path / "run").config.dropout == 0.3


def test_the_recipe_of_the_data_sets_the_length_and_a_resumed_run_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"family": 2, "auto": 5}
    monkeypatch.setattr("protperf.lm.training.request.default_steps", lambda recipe, steps_of_pass=0: steps[recipe])
    path, size = records(tmp_path / "in.fa", 120, 120), tmp_path / "size.toml"
    size.write_text("num_layers = 1\nmodel_dim = 8\nnum_heads = 1\nhead_dim = 8\nffn_dim = 8\nnum_features = 8\n")
    given = {"size": str(size), "batch_tokens": 200}
    assert read_request(tmp_path / "run", given).train(path, tmp_path / "run").steps == 2
    steps["auto"] = 7
    assert read_request(tmp_path / "run", {"resume": True}).train(path, tmp_path / "run").steps == 2
