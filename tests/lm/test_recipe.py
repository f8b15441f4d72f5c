"""Recipes: each is a file of options, and what is named takes the place of what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from protperf.errors import ConfigError
from protperf.lm.options import pick
from protperf.lm.training.options import RunOptions
from protperf.lm.training.recipe import RECIPES
from protperf.lm.training.request import read_request


def test_a_family_is_read_both_ways_by_weight_from_varied_starts(tmp_path: Path) -> None:
    request = read_request(tmp_path / "run", {"recipe": "family", "steps": 3})
    found = request.config, request.options
    assert (found[0].objective, found[0].directions) == ("causal", "both")
    assert (found[1].starts, found[1].weights, found[1].optimizer) == ("varied", "relatives", "muon")


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "plain"])
def test_the_help_says_what_a_recipe_sets(recipe: str) -> None:
    request = read_request("run", {"recipe": recipe, "steps": 3})
    plain = read_request("run", {"steps": 3})
    (option,) = pick(RunOptions, "recipe")
    for ours, theirs in ((request.config, plain.config), (request.options, plain.options)):
        for name, value in ours.to_mapping().items():
            said = f"--{name.replace('_', '-')} {value}" in option.help
            assert said == (value != theirs.to_mapping()[name]), name


def test_what_is_named_takes_the_place_of_the_recipe(tmp_path: Path) -> None:
    request = read_request(tmp_path, {"recipe": "family", "steps": 3, "optimizer": "adamw", "objective": "both"})
    assert (request.options.optimizer, request.options.starts) == ("adamw", "varied")
    assert (request.config.objective, request.config.directions) == ("both", "both")
    masked = read_request(tmp_path, {"recipe": "family", "steps": 3, "objective": "masked"})
    assert (masked.config.directions, masked.options.weights) == ("forward", "relatives")


def test_an_unknown_recipe_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recipe is 'families'"):
        read_request(tmp_path, {"recipe": "families", "steps": 3})
