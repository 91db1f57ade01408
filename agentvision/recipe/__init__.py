"""Recipes: a run as data. `load_recipe` reads one, `write_resolved` keeps what it came to and where from."""

from __future__ import annotations

from agentvision.recipe.load import RecipeInfo, is_recipe, list_recipes, load_recipe, make_recipe, recipe_info
from agentvision.recipe.resolved import differing_keys, resolved_yaml, write_resolved
from agentvision.recipe.schema import Recipe

__all__ = [
    "Recipe",
    "RecipeInfo",
    "differing_keys",
    "is_recipe",
    "list_recipes",
    "load_recipe",
    "make_recipe",
    "recipe_info",
    "resolved_yaml",
    "write_resolved",
]
