"""Recipes: a run as data. `load_recipe` reads one, `write_resolved` keeps what it came to and where from."""

from __future__ import annotations

from agentvision.recipe.load import list_profiles, list_recipes, load_recipe
from agentvision.recipe.resolved import differing_keys, resolved_yaml, write_resolved
from agentvision.recipe.schema import Recipe

__all__ = [
    "Recipe",
    "differing_keys",
    "list_profiles",
    "list_recipes",
    "load_recipe",
    "resolved_yaml",
    "write_resolved",
]
