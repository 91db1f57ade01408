"""`agentvision recipes`: what ships with the package, what a recipe comes to, and what is wrong with one."""

from __future__ import annotations

from typing import Annotated

import cyclopts

from agentvision.errors import RecipeError

app = cyclopts.App(name="recipes", help="List, show and check recipes.")

Profile = Annotated[str | None, cyclopts.Parameter(name="--profile")]


@app.command(name="list")
def list_recipes() -> None:
    """List the recipes that ship with the package, with their profiles."""
    from agentvision import recipe

    known = recipe.list_recipes()
    width = max(map(len, known), default=0)
    for name, info in known.items():
        profiles = f" [profiles: {', '.join(info.profiles)}]" if info.profiles else ""
        print(f"{name:<{width}}  {info.description}{profiles}")


@app.command
def show(recipe: str, *overrides: str, profile: Profile = None) -> None:
    """Show everything that a recipe comes to, and where each value is from.

    Parameters
    ----------
    recipe
        Its name, or the path of a file.
    overrides
        Values to change, as key.path=value.
    profile
        The profile to lay over it.
    """
    from agentvision.recipe import load_recipe, resolved_yaml

    print(resolved_yaml(load_recipe(recipe, profile=profile, overrides=overrides)), end="")


@app.command
def check(recipe: str, *overrides: str, profile: Profile = None) -> None:
    """Check a recipe with all its profiles: keys, values, plug-ins and their settings, templates. No model is loaded.

    Parameters
    ----------
    recipe
        Its name, or the path of a file.
    overrides
        Values to change, as key.path=value.
    profile
        Check with this profile alone.
    """
    from agentvision.preflight import problems as preflight_problems
    from agentvision.recipe import load_recipe, recipe_info
    from agentvision.recipe.problems import InvalidRecipe, Problem, render

    profiles = [profile] if profile is not None else [None, *recipe_info(recipe).profiles]
    invalid: dict[Problem, None] = {}  # profiles share most of what is wrong
    found: dict[str, None] = {}
    for each in profiles:
        try:
            loaded = load_recipe(recipe, profile=each, overrides=overrides)
        except InvalidRecipe as error:
            invalid |= dict.fromkeys(error.problems)
        else:
            found |= dict.fromkeys(preflight_problems(loaded, train=loaded.trainer.steps > 0))
    if invalid or found:
        raise RecipeError("\n".join([*([render(list(invalid))] if invalid else []), *found]))
    shown = ", ".join(name for name in profiles if name)
    print(f"{recipe}: in order{f' (with profile {shown})' if shown else ''}")
