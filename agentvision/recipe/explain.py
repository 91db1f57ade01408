"""Pydantic's errors as problems of a recipe: placed in the tree that was validated, in words for people.

A location is walked down the tree to the value, or to the key when the key is the mistake; where something is missing,
to the nearest thing above it that is there.
"""

from __future__ import annotations

import types
from typing import Annotated, Any, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agentvision.recipe.parts import Plugin
from agentvision.recipe.problems import KeyPath, Place, Problem, nearest
from agentvision.recipe.schema import Recipe
from agentvision.recipe.tree import Node

Loc: TypeAlias = tuple[int | str, ...]

_WORDS = {
    "a valid string": "a text (in quotes, if it looks like something else)",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}


def explain(error: ValidationError, root: Node) -> list[Problem]:
    """A problem for each of pydantic's errors."""
    return [_problem(details, root) for details in error.errors(include_url=False) if not _follows(details)]


def _follows(details: ErrorDetails) -> bool:
    """Whether it is only of items that are wrong themselves, and are told: pydantic counts none of them."""
    return details["type"] == "too_short" and len(details["input"]) >= details.get("ctx", {})["min_length"]


def _problem(details: ErrorDetails, root: Node) -> Problem:
    loc = details["loc"]
    if details["type"] != "extra_forbidden":
        return Problem(*_locate(root, loc), _what(details))
    key = str(loc[-1])
    what = f"unknown key {key!r}{nearest(key, known_keys(loc[:-1]), or_all=True)}"
    return Problem(*_locate(root, loc, at_key=True), what)


def _locate(root: Node, loc: Loc, *, at_key: bool = False) -> tuple[Place, KeyPath]:
    """(place, path as written) of a location.

    A plug-in's location skips its name (`rewards.1.weight`), which the written path has (`rewards.1.format.weight`).
    """
    node, path = root, []
    for index, part in enumerate(map(str, loc)):
        child = node.children.get(part)
        if child is None and path and path[-1].isdecimal() and len(node.map or ()) == 1:
            ((name, node),) = node.children.items()
            path.append(name)
            child = node.children.get(part)
        path.append(part)
        if child is None:
            return node.key or node.place, (*path, *map(str, loc[index + 1 :]))
        node = child
    return node.key if at_key and node.key else node.place, tuple(path)


def _what(details: ErrorDetails) -> str:
    given, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "missing":
            return "is required, and is not there"
        case "contradiction":
            return str(context["what"])
        case "value_error":
            return str(context["error"])
        case "literal_error":
            expected = str(context["expected"])
            words = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
            return f"must be {expected}, not {given!r}{nearest(given, words)}"
        case "model_type" | "dict_type":
            return f"must be a map of keys to values, not {given!r}"
        case "tuple_type":
            return f"must be a list, not {given!r}"
        case "too_short":
            return f"must have at least {context['min_length']} in it, not {given!r}; leave the key out for its default"
        case _:
            text = details["msg"].removeprefix("Input should be ")
            if given is None:
                out = "; leave the key out for its default" if _has_default(details["loc"]) else ""
                return f"must be {_WORDS.get(text, text)}, not null{out}"
            return f"must be {_WORDS.get(text, text)}, not {given!r}"


def known_keys(loc: Loc) -> list[str]:
    """The keys that the schema has at a location; empty where anything goes."""
    kind: Any = Recipe
    for part in loc:
        kind = _inner(kind, str(part))
    return sorted(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _has_default(loc: Loc) -> bool:
    kind: Any = Recipe
    for part in loc[:-1]:
        kind = _inner(kind, str(part))
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    return str(loc[-1]) in fields and not fields[str(loc[-1])].is_required()


def _inner(kind: Any, part: str) -> Any:
    """The type that a schema type holds under a key or index."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        known = kind.own_keys() if issubclass(kind, Plugin) else kind.model_fields
        return _bare(kind.model_fields[part].annotation) if part in known else None
    return _bare(get_args(kind)[0]) if get_origin(kind) is tuple else None


def _bare(annotation: Any) -> Any:
    """An annotation without `Annotated` and without `None`; of several types, the one that has keys."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [arg for arg in get_args(annotation) if arg is not type(None)]
        if len(rest) > 1:
            rest = [arg for arg in rest if isinstance(arg, type) and issubclass(arg, BaseModel)]
        return _bare(rest[0]) if len(rest) == 1 else None
    return annotation
