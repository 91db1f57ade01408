"""From a name or a path to a `Recipe`: extends, profile, overrides, validation.

The layers, each laid on the one before (maps merge, everything else is replaced): the recipes named by `extends:`, the furthest
first; the recipe itself; the chosen profile as they define it, in the same order; the overrides. Then one validation tells
everything that is wrong at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path as FilePath
from typing import Any, Protocol

from pydantic import ValidationError

from agentvision.errors import RecipeError, suggest
from agentvision.recipe.problems import from_pydantic, render
from agentvision.recipe.schema import Recipe
from agentvision.recipe.tree import Node, Origins, Place, Problem, overlay, parse, put

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 1_000_000
"""A larger file is not a recipe."""


def load_recipe(
    name_or_path: str | FilePath, *, profile: str | None = None, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Recipe:
    """Read a recipe by its name (`visionthink`) or path, with a profile and overrides laid over it.

    Overrides are `key.path=value` with the value in YAML, or a mapping of key paths to values. A list's items are named by
    index (`rewards.2.ratio_penalty.threshold=0.15`) or, where one such plug-in stands there, by its name
    (`rewards.ratio_penalty.threshold=0.15`). Raises `RecipeError` with everything that is wrong.
    """
    tree, problems = _layers(_find(str(name_or_path)))
    profiles = (tree.map or {}).get("profiles")
    tree = replace(tree, value={k: v for k, v in (tree.map or {}).items() if k not in ("profiles", "extends")})
    if profile is not None:
        known = (profiles.map if profiles else None) or {}
        if profile not in known:
            place = profiles.key if profiles else None
            problems.append(Problem(place, (), f"there is no profile {profile!r}.{suggest(profile, known) or ' It has none.'}"))
        elif problem := _not_a_map(known[profile], ("profiles", profile)):
            problems.append(problem)
        else:
            tree = overlay(tree, known[profile].in_layer(f"profile {profile}"))
    tree = _override(tree, overrides, problems)
    return _validate(tree, problems)


def list_recipes() -> dict[str, str]:
    """Names of the recipes that ship with the package, with their descriptions."""
    return {name: str(_body(name).get("description", "")) for name in _packaged()}


def list_profiles(name_or_path: str | FilePath) -> list[str]:
    """Names of the profiles that a recipe and those it extends define."""
    tree, _ = _layers(_find(str(name_or_path)))
    profiles = (tree.map or {}).get("profiles")
    return sorted((profiles.map if profiles else None) or {})


# --- finding --------------------------------------------------------------------------------------------------------


class _Readable(Protocol):
    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Source:
    """A recipe's file. `key` is the same for the same file; `folder` is None for packaged recipes."""

    label: str
    key: str
    file: _Readable
    folder: FilePath | None = None


def _packaged() -> dict[str, Any]:
    """The recipe files in the package, by name."""
    entries = {entry.name: entry for entry in files("agentvision.recipes").iterdir()}
    return {name.removesuffix(".yaml"): entries[name] for name in sorted(entries) if name.endswith(".yaml")}


def _body(name: str) -> dict[str, Any]:
    tree, _ = _layers(_find(name))
    return tree.plain()


def _is_path(text: str) -> bool:
    return text.endswith(SUFFIXES) or "/" in text or "\\" in text


def _find(text: str, folder: FilePath | None = None) -> _Source:
    """The file that a name or path means; paths start from `folder` (the current one)."""
    if not _is_path(text):
        packaged = _packaged()
        if text not in packaged:
            raise RecipeError(
                f"there is no recipe {text!r}.{suggest(text, packaged)} A recipe of your own is named by its path, such as ./{text}.yaml"
            )
        return _Source(f"{text}.yaml", f"package:{text}", packaged[text])
    path = (folder or FilePath()) / FilePath(text).expanduser()
    try:
        if not path.is_file():
            what = "is a folder, not a recipe file" if path.is_dir() else "does not exist"
            name = path.stem if path.stem in _packaged() else ""
            raise RecipeError(f"{path} {what}." + (f" The recipe that ships with the package is called {name!r}." if name else ""))
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path} is larger than {MAX_BYTES} bytes: it is not a recipe.")
    except (OSError, ValueError) as error:
        raise RecipeError(f"{text!r} cannot be read: {error}") from None
    return _Source(str(path), str(path.resolve()), path, path.parent)


def _read(source: _Source) -> tuple[Node, list[Problem]]:
    try:
        text = source.file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(f"{source.label} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{source.label} is not UTF-8 text (byte {error.start})") from None
    tree, problems = parse(text, source.label)
    if tree is None:
        raise RecipeError(render(problems))
    if problem := _not_a_map(tree, ()):
        raise RecipeError(render([problem]))
    return tree, problems


# --- layers ---------------------------------------------------------------------------------------------------------


def _layers(source: _Source, below: tuple[str, ...] = ()) -> tuple[Node, list[Problem]]:
    """A recipe's tree laid over those it extends, `profiles` included, with the problems found on the way."""
    tree, problems = _read(source)
    body = tree.map or {}
    profiles, extends = body.get("profiles"), body.get("extends")
    if profiles is not None and (problem := _not_a_map(profiles, ("profiles",))):
        problems.append(problem)
        tree = replace(tree, value={key: value for key, value in body.items() if key != "profiles"})
    if extends is None:
        return tree, problems
    if not isinstance(extends.value, str) or not extends.value:
        return tree, [*problems, Problem(extends.place, ("extends",), "must be the name or path of a recipe")]
    try:
        parent = _find(extends.value, source.folder)
    except RecipeError as error:
        return tree, [*problems, Problem(extends.place, ("extends",), str(error))]
    chain = (*below, source.key)
    if parent.key in chain:
        return tree, [*problems, Problem(extends.place, ("extends",), f"{extends.value!r} extends this recipe in turn; break the cycle")]
    base, found = _layers(parent, chain)
    return overlay(base, tree), [*found, *problems]


def _not_a_map(node: Node, path: tuple[str, ...]) -> Problem | None:
    if node.map is not None:
        return None
    return Problem(node.place, path, f"must be a map of keys to values, not {node.plain()!r}")


def _override(tree: Node, overrides: Sequence[str] | Mapping[str, Any], problems: list[Problem]) -> Node:
    if isinstance(overrides, str):
        raise TypeError("overrides are a list of 'key.path=value' or a mapping, not one string")
    texts = [f"{k}={json.dumps(v)}" for k, v in overrides.items()] if isinstance(overrides, Mapping) else list(overrides)
    for number, text in enumerate(texts, start=1):
        parsed = _parse_override(text, number)
        result = put(tree, *parsed) if not isinstance(parsed, Problem) else parsed
        if isinstance(result, Node):
            tree = result
        elif isinstance(result, Problem):
            problems.append(result)
        else:
            place, what = result
            problems.append(Problem(place, tuple(key for key, _ in parsed[0]), what))  # pyright: ignore[reportIndexIssue]
    return tree


def _parse_override(text: str, number: int) -> tuple[list[tuple[str, Place]], Node] | Problem:
    """The keys (with their places) and the value of `key.path=value`."""
    dotted, equals, value = text.partition("=")

    def place(column: int) -> Place:
        return Place("override", number, column, text, layer="override")

    if not equals:
        return Problem(place(1), (), f"an override is key.path=value, not {text!r}")
    path: list[tuple[str, Place]] = []
    column = 1
    for key in dotted.split("."):
        path.append((key, place(column)))
        if not key.strip():
            return Problem(place(column), (), f"an override is key.path=value, and a key is empty in {dotted!r}")
        column += len(key) + 1
    node, problems = parse(value, "override")
    if node is None or problems:
        what = problems[0].what if problems else "this is not YAML"
        inside = problems[0].place.column - 1 if problems and problems[0].place else 0
        return Problem(place(column + inside), tuple(dotted.split(".")), what)
    if not value.strip():
        return Problem(place(column), tuple(dotted.split(".")), "the value is missing; write null for none, '' for an empty text")
    return path, _moved(node, place, column)


def _moved(node: Node, place: Any, offset: int) -> Node:
    """A tree read from an override's value, with its places moved into the override's whole text."""

    def move(spot: Place | None) -> Place | None:
        return spot and place(spot.column - 1 + offset)

    value = node.value
    if isinstance(value, dict):
        value = {key: _moved(child, place, offset) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_moved(child, place, offset) for child in value]
    return Node(value, place(node.place.column - 1 + offset), move(node.key))


# --- validation -----------------------------------------------------------------------------------------------------


def _validate(tree: Node, problems: Sequence[Problem]) -> Recipe:
    """The recipe that a tree says. Through JSON in strict mode: `"60"` is no number, `1` is no truth value."""
    recipe = None
    found: list[Problem] = []
    try:
        recipe = Recipe.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        found = from_pydantic(error, tree)
    if recipe is None or problems:
        raise RecipeError(render([*problems, *found]))
    labels = {path: node.place.label for path, node in tree.leaves()}
    recipe._origins = Origins(labels)
    return recipe
