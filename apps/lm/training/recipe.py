"""Recipes: options that suit a kind of data, in place of the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECIPES = ("plain", "family")
"""`plain` changes no default; the others are files of `recipes/`."""


def with_recipe(recipe: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a recipe, and those given in place of them.

    Args:
        recipe: a name of `RECIPES`.
        given: by field, the options that were named.
    """
    values = {} if recipe == "plain" else _read(recipe)
    if given.get("objective") == "masked":
        # With masks a model sees both sides of a residue at once.
        values.pop("directions", None)
    return {**values, **given}


def _read(recipe: str) -> dict[str, Any]:
    # Imported here: a command that only parses needs neither.
    import tomllib
    from importlib import resources

    text = resources.files("protperf.lm").joinpath("recipes", f"{recipe}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)
