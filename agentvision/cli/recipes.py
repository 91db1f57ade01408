"""`agentvision recipes`: what ships with the package, what a recipe comes to, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from agentvision.errors import AgentVisionError, PluginError, RecipeError, suggest

if TYPE_CHECKING:
    from agentvision.recipe import Recipe

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
    """Check a recipe with all its profiles: keys, values, and that its plug-ins are there.

    Parameters
    ----------
    recipe
        Its name, or the path of a file.
    overrides
        Values to change, as key.path=value.
    profile
        Check with this profile alone.
    """
    from agentvision.recipe import load_recipe, recipe_info

    profiles = [profile] if profile is not None else [None, *recipe_info(recipe).profiles]
    problems: dict[str, None] = {}
    for each in profiles:
        try:
            loaded = load_recipe(recipe, profile=each, overrides=overrides)
        except RecipeError as error:
            problems[str(error)] = None
        else:
            problems |= dict.fromkeys(_missing(loaded))
    if problems:
        raise RecipeError("\n".join(problems))
    shown = ", ".join(name for name in profiles if name)
    print(f"{recipe}: in order{f' (with profile {shown})' if shown else ''}")


def _missing(recipe: Recipe) -> Iterator[str]:
    """A line for each plug-in that is not there or refuses its parameters. No model and no data is loaded."""
    from agentvision import build, plugins

    def tried(path: str, work: Callable[[], Any]) -> Iterator[str]:
        try:
            work()
        except AgentVisionError as error:
            yield f"{_origin(recipe, path)}{path}: {error}"

    def policy() -> None:
        name, known = recipe.policy.backend, plugins.names("policies")
        if ":" in name:
            plugins.load("policies", name)
        elif name not in known:  # a backend is heavy to import: its name is enough
            raise PluginError(f"there is no {name!r} among the policies.{suggest(name, known)}")

    yield from tried("model.path", lambda: build.model_path(recipe.model.path))
    yield from tried("policy.backend", policy)
    sources = {"data": recipe.data.source, "data.train": recipe.data.train.source, "data.eval": recipe.data.eval.source}
    if recipe.warm_start is not None:
        sources["warm_start.data"] = recipe.warm_start.data.source
    for section, name in sources.items():
        if name is not None:
            yield from tried(f"{section}.source", lambda name=name: plugins.load("data", name))
    for index, tool in enumerate(recipe.env.tools):
        alone = recipe.model_copy(update={"env": recipe.env.model_copy(update={"tools": (tool,)})})
        yield from tried(f"env.tools.{index}", lambda alone=alone: build.build_tools(alone))
    try:
        build.build_rewards(recipe)
    except AgentVisionError as error:
        yield from (f"{_origin(recipe, line.partition(': ')[0])}{line}" for line in str(error).splitlines())


def _origin(recipe: Recipe, path: str) -> str:
    """'visionthink.yaml:12: ' for the value at a path, or for the first below it; empty for a default."""
    keys = tuple(path.split("."))
    labels = (label for at, label in recipe.origins.items() if at[: len(keys)] == keys)
    return f"{label}: " if (label := next(labels, "")) else ""
