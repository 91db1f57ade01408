"""The resolved recipe: every value of a run, defaults included, each with where it came from.

Written as plain YAML, so that it loads again to an equal recipe; the origins are comments. `differing_keys` says what a
resumed run would do otherwise than the run it resumes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentvision.recipe.problems import KeyPath
from agentvision.recipe.schema import Recipe
from agentvision.recipe.tree import to_yaml

_COMMENT_COLUMN = 56


def write_resolved(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Write `recipe` with the origin of each value as an end-of-line comment. Raises `OSError`."""
    Path(path).write_text(resolved_yaml(recipe), encoding="utf-8")


def resolved_yaml(recipe: Recipe) -> str:
    """The text of `recipe.resolved.yaml`."""
    return "".join(f"{line}\n" for line in _map_lines(recipe.model_dump(mode="json"), (), recipe, ""))


def differing_keys(one: Recipe, other: Recipe) -> tuple[str, ...]:
    """Key paths at which two recipes differ, sorted; empty when they are equal."""
    a, b = _flat(one.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
    missing = object()
    return tuple(sorted(".".join(p) for p in a.keys() | b.keys() if a.get(p, missing) != b.get(p, missing)))


def _flat(value: Any, path: KeyPath = ()) -> dict[KeyPath, Any]:
    if isinstance(value, dict):  # what an empty one lacks is told by its keys
        return {p: v for key, child in value.items() for p, v in _flat(child, (*path, str(key))).items()}
    if isinstance(value, list) and value:
        items = (((*path, str(index)), item) for index, item in enumerate(value))
        return {p: v for at, item in items for p, v in (_flat(item, at) or {at: item}).items()}
    return {path: value}


# --- lines ----------------------------------------------------------------------------------------------------------


def _map_lines(values: dict[str, Any], path: KeyPath, recipe: Recipe, indent: str) -> Iterator[str]:
    for key, value in values.items():
        yield from _entry_lines(f"{indent}{to_yaml(key)}:", value, (*path, key), recipe, indent + "  ")


def _entry_lines(head: str, value: Any, path: KeyPath, recipe: Recipe, indent: str) -> Iterator[str]:
    """`head` followed by the value: on the same line where it is one, indented under it where it has parts."""
    if isinstance(value, dict) and value:
        yield head
        yield from _map_lines(value, path, recipe, indent)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield head
        for index, item in enumerate(value):
            yield from _item_lines(item, (*path, str(index)), recipe, indent)
    elif isinstance(value, str) and _fits_a_block(value):
        yield f"{head} |-  # {_origin(path, recipe)}"
        yield from (indent + line if line else "" for line in value.split("\n"))
    else:
        yield f"{f'{head} {to_yaml(value)}':<{_COMMENT_COLUMN}}  # {_origin(path, recipe)}"


def _item_lines(item: Any, path: KeyPath, recipe: Recipe, indent: str) -> Iterator[str]:
    if not (isinstance(item, dict) and item):
        yield from _entry_lines(f"{indent}-", item, path, recipe, indent + "  ")
        return
    for number, line in enumerate(_map_lines(item, path, recipe, indent + "  ")):
        yield line if number else f"{indent}- {line[len(indent) + 2 :]}"


def _origin(path: KeyPath, recipe: Recipe) -> str:
    """Where the value came from; a list's is its first item's, a bare plug-in's that of its name."""
    for key in (path, (*path, "0"), path[:-1]):
        if key in recipe.origins:
            return recipe.origins[key]
    return "default"


def _fits_a_block(text: str) -> bool:
    """Whether a `|-` block gives back exactly this text."""
    lines = text.split("\n")
    return (
        len(lines) > 1
        and all(line.isprintable() and line == line.rstrip() for line in lines)
        and lines[0] != ""
        and lines[-1] != ""
        and not lines[0].startswith(" ")
    )
