"""What can be found wrong with a recipe before a model is loaded.

`recipes check` says all of it, and training and evaluation begin with the same, so that a typo in the last section is
not found after the first hour. Plug-ins are imported and made; models are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from agentvision import build, hub, plugins
from agentvision._settings import UnfitSettings, fitted, taken
from agentvision.data import Use, check_source
from agentvision.errors import AgentVisionError, PluginError, RecipeError
from agentvision.recipe import Recipe
from agentvision.tool import Tool

_KEYS_OF_THEIR_OWN = {
    "path": "model.path",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "attn": "model.attn",
    "device": "model.device",
    "min_pixels": "model.min_pixels",
    "max_pixels": "model.max_pixels",
    "trust_remote_code": "model.trust_remote_code",
    "adapter": "model.lora",
    "context_tokens": "sampling.context_tokens",
    "max_rows": "policy.max_rows",
    "placement": "policy.placement",
    "endpoints": "policy.endpoints",
}
"""What a backend that loads files is told by other keys than `policy.options`: two would contradict one another."""


def preflight(
    recipe: Recipe, *, model: str | Path | None = None, own_policy: bool = False, train: bool = False
) -> None:
    """Raise `RecipeError` with everything that is wrong, one line each, or what rewards and the policy lack on this machine.

    `model` is the one that will be loaded in place of the recipe's; with `own_policy` none is. `train`: it is to learn.
    """
    if found := list(problems(recipe, model=model, own_policy=own_policy, train=train)):
        raise RecipeError("\n".join(found))
    build.build_rewards(recipe).check()
    if not own_policy:
        build.check_policy(recipe, model=model, train=train)


def problems(
    recipe: Recipe, *, model: str | Path | None = None, own_policy: bool = False, train: bool = False
) -> Iterator[str]:
    """A line for each thing wrong: where its value is from, its key, what, and the fix."""
    found: list[tuple[str, str]] = []
    if not own_policy:
        found += _policy(recipe, model, train)
    found += _sources(recipe)
    found += _tools(recipe)
    try:
        build.build_rewards(recipe)
    except AgentVisionError as error:
        found += [(path, what) for path, _, what in (line.partition(": ") for line in str(error).splitlines())]
    for path, what in found:
        yield f"{origin(recipe, path)}{path}: {what}"


def origin(recipe: Recipe, path: str) -> str:
    """'visionthink.yaml:12: ' for a value, or for the first of a list's item; empty for a default, and for a section
    whose values are from several places."""
    keys = tuple(path.split("."))
    labels = [label for at, label in recipe.origins.items() if at[: len(keys)] == keys]
    one_place = len(set(labels)) == 1 or any(key.isdecimal() for key in keys)
    return f"{labels[0]}: " if labels and one_place else ""


def _policy(recipe: Recipe, model: str | Path | None, train: bool) -> Iterator[tuple[str, str]]:
    """(key, what) of a model, a policy or an option of it that cannot be."""
    path = "model.path" if model is None else "--model"
    try:
        build.model_path(str(model or recipe.model.path))
    except AgentVisionError as error:
        yield path, str(error)
        model = ""  # known to be wrong: what follows is about the policy
    try:
        make, options = build.policy_call(recipe, model=model, train=train)
    except AgentVisionError as error:
        yield "policy.backend", str(error)
        return
    for key, value in recipe.policy.options.items():
        if "path" in options and value is not None and (own := _KEYS_OF_THEIR_OWN.get(key)):
            yield f"policy.options.{key}", f"set {own} instead"
    try:
        fitted(make, options, elsewhere=_KEYS_OF_THEIR_OWN)
    except UnfitSettings as error:
        for key, what in error.problems.items():
            own = "policy.options" if key in recipe.policy.options else "policy"
            if own == "policy" and hasattr(recipe.policy, key) and key not in taken(make):
                what = f"the backend {recipe.policy.backend!r} has none; leave it out, or take a backend that has one"
            yield (f"{own}.{key}" if own != "policy" or hasattr(recipe.policy, key) else "policy.backend"), what
    except AgentVisionError as error:
        yield "policy.backend", str(error)
    else:
        if options.get("max_images", recipe.env.max_images) < recipe.env.max_images:
            yield "policy.options.max_images", f"must not be below env.max_images ({recipe.env.max_images})"
        try:
            build.check_policy(recipe, model=model, train=train)
        except AgentVisionError as error:
            if getattr(error, "reason", "") != "no_key":  # which another machine may have: `preflight` tells of it
                for line in str(error).splitlines():
                    where, _, what = line.partition(": ")
                    named = where.startswith(("policy.", "model.")) and " " not in where
                    yield (where, what) if named else ("policy.options", line)
        if options.get("path") and "path" not in recipe.policy.options:  # one that loads files
            try:
                hub.local_folder(options["path"])
            except AgentVisionError as error:
                yield path, str(error)


def _sources(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, what) of data sources that are not there, or do not take what the recipe gives them."""
    named = {"data": recipe.data.source, "data.train": recipe.data.train.source, "data.eval": recipe.data.eval.source}
    if recipe.warm_start is not None:
        named["warm_start.data"] = recipe.warm_start.data.source
    for section, name in named.items():
        try:
            _ = name and plugins.load("data", name)
        except AgentVisionError as error:
            yield f"{section}.source", str(error)
    uses: list[Use] = ["train", "eval", *(["warm_start"] if recipe.warm_start is not None else [])]
    refused: dict[str, str] = {}
    for use in uses:
        try:
            check_source(recipe, use)
        except PluginError:
            continue  # told above
        except AgentVisionError as error:
            where, _, what = str(error).partition(": ")
            refused[what] = "data" if what in refused else where
    yield from ((where, what) for what, where in refused.items())


def _tools(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(key, what) of tools that cannot be made, and of templates that cannot be rendered with those that can."""
    made: list[Tool] = []
    for index, plugin in enumerate(recipe.env.tools):
        alone = recipe.model_copy(update={"env": recipe.env.model_copy(update={"tools": (plugin,)})})
        try:
            tools = build.build_tools(alone)
            _ = [tool.schema for tool in tools]  # made on demand: a type without one is told here
        except AgentVisionError as error:
            yield f"env.tools.{index}", str(error)
            continue
        for tool in tools:
            if tool.name in (other.name for other in made):
                yield f"env.tools.{index}", build.twice(tool.name)
        made += tools
    protocol = build.build_protocol(recipe)
    for line in protocol.check([tool.schema for tool in made]):
        path, _, what = line.partition(": ")
        yield path, what
