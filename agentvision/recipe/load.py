"""From a name or a path to a `Recipe`: extends, profile, overrides, validation.

The layers, each laid on the one before (maps merge, everything else is replaced): the recipes named by `extends:`, the
furthest first; the recipe itself; the chosen profile as they define it, in the same order; the overrides. Then one
validation tells everything that is wrong at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from agentvision.errors import RecipeError
from agentvision.recipe.explain import explain
from agentvision.recipe.overrides import Overrides
from agentvision.recipe.overrides import apply as apply_overrides
from agentvision.recipe.problems import InvalidRecipe, KeyPath, Problem, nearest
from agentvision.recipe.schema import Recipe
from agentvision.recipe.tree import Node, overlay, parse, to_yaml

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 1_000_000
"""A larger file is not a recipe."""


def load_recipe(
    name_or_path: str | os.PathLike[str], *, profile: str | None = None, overrides: Overrides = ()
) -> Recipe:
    """Read a recipe by its name (`visionthink`) or path, with a profile and overrides laid over it.

    Overrides are `key.path=value` with the value in YAML, or a mapping of key paths to values. A list's items are named
    by index (`rewards.2.ratio_penalty.threshold=0.15`) or, where one such plug-in stands there, by its name
    (`rewards.ratio_penalty.threshold=0.15`); a map is laid on what is there, everything else takes its place. Relative
    paths inside a recipe (data, models, plug-ins) start from the current folder. Raises `RecipeError` with everything
    that is wrong.
    """
    tree, problems = _layers(_find(os.fspath(name_or_path)))
    body = dict(tree.map or {})
    profiles = body.pop("profiles", None)
    body.pop("extends", None)
    tree = replace(tree, value=body)
    if profile is not None:
        known = (profiles.map if profiles else None) or {}
        layer = known.get(profile)
        if layer is None:
            hint = nearest(profile, known, or_all=True) or "; this recipe has none"
            problems.append(Problem(profiles.key if profiles else None, (), f"there is no profile {profile!r}{hint}"))
        elif problem := _not_a_map(layer, ("profiles", profile)):
            problems.append(problem)
        else:
            tree = overlay(tree, layer.moved(lambda place: replace(place, layer=f"profile {profile}")))
    tree, found = apply_overrides(tree, overrides)
    return _validate(tree, [*problems, *found])


def make_recipe(values: Mapping[str, Any], *, overrides: Overrides = ()) -> Recipe:
    """A recipe from values, with overrides laid over them. Raises `RecipeError` with everything that is wrong."""
    tree, problems = parse(to_yaml(dict(values)), "recipe")
    if tree is None:
        raise InvalidRecipe(problems)
    tree, found = apply_overrides(tree, overrides)
    return _validate(tree, [*problems, *found])


def is_recipe(name_or_path: str) -> bool:
    """Whether this names a recipe: one that ships with the package, or a YAML file."""
    return name_or_path.endswith(SUFFIXES) or name_or_path in _packaged()


@dataclass(frozen=True, slots=True)
class RecipeInfo:
    """What a recipe says of itself, its own and inherited."""

    description: str
    profiles: tuple[str, ...]


def recipe_info(name_or_path: str | os.PathLike[str]) -> RecipeInfo:
    """A recipe's description and the names of its profiles. Raises `RecipeError` if it cannot be read."""
    tree, _ = _layers(_find(os.fspath(name_or_path)))
    top = tree.children
    profiles = top["profiles"].children if "profiles" in top else {}
    return RecipeInfo(str(top["description"].value) if "description" in top else "", tuple(sorted(profiles)))


def list_recipes() -> dict[str, RecipeInfo]:
    """The recipes that ship with the package, by name."""
    return {name: recipe_info(name) for name in _packaged()}


def _validate(tree: Node, problems: Sequence[Problem]) -> Recipe:
    """The recipe that a tree says. Through JSON in strict mode: `"60"` is no number, `1` is no truth value."""
    try:
        recipe = Recipe.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        told = {problem.place for problem in problems}  # what could not be read is not of the wrong type besides
        raise InvalidRecipe([*problems, *(p for p in explain(error, tree) if p.place not in told)]) from None
    if problems:
        raise InvalidRecipe(problems)
    return recipe.with_origins({path: node.place.label for path, node in tree.leaves()})


# --- finding --------------------------------------------------------------------------------------------------------


class _Readable(Protocol):
    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Source:
    """A recipe's file. `key` is the same for the same file; `folder` is where its `extends:` paths start."""

    label: str
    key: str
    file: _Readable
    folder: Path


def _packaged() -> dict[str, Any]:
    """The recipe files in the package, by name."""
    entries = {
        e.name.removesuffix(".yaml"): e for e in files("agentvision.recipes").iterdir() if e.name.endswith(".yaml")
    }
    return dict(sorted(entries.items()))


def _find(text: str, folder: Path = Path()) -> _Source:
    """The file that a name or path means; paths start from `folder`."""
    if not (text.endswith(SUFFIXES) or "/" in text or os.sep in text):
        packaged = _packaged()
        if text not in packaged:
            hint = nearest(text, packaged, or_all=True)
            raise RecipeError(
                f"there is no recipe {text!r}{hint} (a file of your own is named by a path, ./{text}.yaml)"
            )
        return _Source(f"{text}.yaml", f"package:{text}", packaged[text], Path())
    path = folder / Path(text).expanduser()
    shipped = f"; the one that ships with the package is called {path.stem!r}" if path.stem in _packaged() else ""
    try:
        if not path.exists():
            raise RecipeError(f"there is no recipe file {str(path)!r}{shipped}")
        if not path.is_file():
            raise RecipeError(f"{str(path)!r} is not a file; name the recipe inside it")
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{str(path)!r} is larger than {MAX_BYTES:,} bytes; it is not a recipe")
        return _Source(str(path), str(path.resolve()), path, path.parent)
    except (OSError, ValueError) as error:
        raise RecipeError(f"the recipe {text!r} cannot be read: {error}") from None


def _read(source: _Source) -> tuple[Node, list[Problem]]:
    try:
        text = source.file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"the recipe {source.label!r} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {source.label!r} is not UTF-8 text (byte {error.start:,})") from None
    tree, problems = parse(text, source.label)
    if tree is None:
        raise InvalidRecipe(problems)
    if problem := _not_a_map(tree, ()):
        raise InvalidRecipe([*problems, problem])
    return tree, problems


# --- layers ---------------------------------------------------------------------------------------------------------


def _layers(source: _Source, below: tuple[str, ...] = ()) -> tuple[Node, list[Problem]]:
    """A recipe's tree laid over those it extends, `profiles` included, with the problems found on the way."""
    tree, problems = _read(source)
    body = dict(tree.map or {})
    if (profiles := body.get("profiles")) and (problem := _not_a_map(profiles, ("profiles",))):
        problems.append(problem)
        del body["profiles"]
        tree = replace(tree, value=body)
    extends = body.get("extends")
    if extends is None:
        return tree, problems
    chain = (*below, source.key)
    try:
        if not isinstance(extends.value, str) or not extends.value:
            raise RecipeError(f"must be the name or the path of a recipe, not {extends.plain()!r}")
        parent = _find(extends.value, source.folder)
        if parent.key in chain:
            raise RecipeError(f"{extends.value!r} extends this recipe in turn; break the cycle")
    except RecipeError as error:
        # What else could be told would be false: keys that are missing here may stand in the recipe that is missing.
        raise InvalidRecipe([*problems, Problem(extends.place, ("extends",), str(error))]) from None
    base, found = _layers(parent, chain)
    return overlay(base, tree), [*found, *problems]


def _not_a_map(node: Node, path: KeyPath) -> Problem | None:
    if node.map is not None:
        return None
    return Problem(node.place, path, f"must be a map of keys to values, not {node.plain()!r}")
