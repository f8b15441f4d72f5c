"""Recipes: options that suit a kind of data, in place of the defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

RECIPES = ("auto", "family", "proteome", "corpus", "plain")
"""`auto` is one of the next ones, by the data; `plain` changes no default; the others are files of `recipes/`."""
_EXPECTS = "expects"
"""What a recipe came to where it was tried; not an option."""
_DURATION = ("steps", "passes", "fewest")
"""How long to train where nothing else says so: at most so many steps, and passes over the sequences; at least `fewest`
steps."""
_BELOW = "below"
"""Tables of further options, of which the first counts whose `residues` the set is below."""
_PLAIN = {"steps": 500, "passes": 50}
"""How long to train without a recipe."""
_FEWEST_STEPS = 100
_SHAPES = ("size", "attention", "num_features", "sampler", "norm")
"""Options of a network that a checkpoint to start with has chosen."""
SCRATCH = "none"
"""In place of a checkpoint to start with: random weights."""


def with_recipe(recipe: str, given: Mapping[str, Any], num_residues: int | None = None) -> dict[str, Any]:
    """The options of a recipe, and those given in place of them. `auto` has none before the data is known.

    Args:
        recipe: a name of `RECIPES`.
        given: by field, the options that were named.
        num_residues: of what is trained on; None while it is not known.
    """
    values = _read(recipe)
    for table in values.get(_BELOW, []):
        if num_residues is not None and num_residues < table["residues"]:
            values |= {name: value for name, value in table.items() if name != "residues"}
            break
    for name in (_EXPECTS, *_DURATION, _BELOW):
        values.pop(name, None)
    if given.get("objective") == "masked":
        # With masks a model sees both sides of a residue at once, and learns little from one that reads in order.
        values.pop("directions", None)
        values.pop("init", None)
    if any(name in given for name in _SHAPES):
        values.pop("init", None)
    chosen = {**values, **given}
    if chosen.get("init") == SCRATCH:
        chosen["init"] = None
    elif chosen.get("init") is not None:
        # The network is that of the checkpoint.
        for name in _SHAPES:
            if name not in given:
                chosen.pop(name, None)
    return chosen


def default_steps(recipe: str, steps_of_pass: float = math.inf) -> int:
    """The steps of a run that does not say how long to train: fewer where there is little to learn from.

    Args:
        steps_of_pass: steps of one pass over the sequences; infinite while they are not known.
    """
    limits = _read(recipe) or _PLAIN
    return int(max(limits.get("fewest", _FEWEST_STEPS), min(limits["steps"], limits["passes"] * steps_of_pass)))


def expectation(recipe: str) -> str:
    """What a recipe of a file came to where it was tried, in words."""
    return str(_read(recipe)[_EXPECTS])


def _read(recipe: str) -> dict[str, Any]:
    if recipe in ("auto", "plain"):
        return {}
    # Imported here: a command that only parses needs neither.
    import tomllib
    from importlib import resources

    text = resources.files("protperf.lm").joinpath("recipes", f"{recipe}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
