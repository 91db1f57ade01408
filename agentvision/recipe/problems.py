"""Everything wrong with a recipe, at once, each where it stands.

Each problem is `file:line:col: key.path: what; did you mean …?`, the line it stands in, and a caret under the spot. What pydantic
found is translated: its location is walked down the tree to the value, or to the key when the key is the mistake.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agentvision.errors import suggest
from agentvision.recipe.schema import Plugin, Recipe
from agentvision.recipe.tree import Node, Path, Place, Problem

Loc = tuple[int | str, ...]


def render(problems: Sequence[Problem]) -> str:
    """The text of a `RecipeError`: a head line when there are several, then one block a problem, in file order."""
    ordered = sorted(problems, key=lambda p: (p.place.file, p.place.line, p.place.column) if p.place else ("", 0, 0))
    blocks = [_block(problem) for problem in dict.fromkeys(ordered)]
    return "\n".join(blocks if len(blocks) == 1 else [f"{len(blocks)} problems in the recipe:", *blocks])


def _block(problem: Problem) -> str:
    head = ": ".join(filter(None, [str(problem.place or ""), ".".join(problem.path), problem.what]))
    if problem.place is None:
        return head
    number = "" if problem.place.layer == "override" else str(problem.place.line)
    source = "".join(c if c.isprintable() else " " for c in problem.place.source)
    return f"{head}\n{number:>6} | {source}\n{'':>6} | {' ' * (problem.place.column - 1)}^"


def from_pydantic(error: ValidationError, root: Node) -> list[Problem]:
    """A problem for each of pydantic's errors, placed in the tree that was validated."""
    return [_problem(details, root) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, root: Node) -> Problem:
    loc = details["loc"]
    unknown = details["type"] == "extra_forbidden"
    place, path = locate(root, loc, at_key=unknown)
    return Problem(place, path, _unknown_key(loc) if unknown else _what(details))


def locate(root: Node, loc: Loc, *, at_key: bool = False) -> tuple[Place, Path]:
    """(place, path as written) of a pydantic location: of the value, else of the nearest thing above it that is there.

    A plug-in's location skips its name (`rewards.1.weight`), which the written path has (`rewards.1.format.weight`).
    """
    node, path = root, []
    place = root.place
    for i, part in enumerate(map(str, loc)):
        child = _child(node, part)
        if child is None and node.map is not None and len(node.map) == 1 and path and path[-1].isdecimal():
            ((name, inner),) = node.map.items()
            path.append(name)
            node = inner
            child = _child(node, part)
        path.append(part)
        if child is None:
            path += map(str, loc[i + 1 :])
            return node.key or node.place, tuple(path)
        node = child
        place = node.key if at_key and node.key is not None else node.place
    return place, tuple(path)


def _child(node: Node, part: str) -> Node | None:
    if node.list is not None:
        return node.list[int(part)] if part.isdecimal() and int(part) < len(node.list) else None
    return (node.map or {}).get(part)


# --- words ----------------------------------------------------------------------------------------------------------


def _what(details: ErrorDetails) -> str:
    given, context = details["input"], details.get("ctx", {})
    match details["type"]:
        case "missing":
            return "is required and not there"
        case "contradiction":
            return str(context["what"])
        case "value_error":
            return str(context["error"])
        case "literal_error":
            expected = str(context["expected"])
            near = suggest(given, [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]) if isinstance(given, str) else ""
            return f"must be {expected}, not {given!r}{near.replace(' Did', '; did') if 'Did you mean' in near else ''}"
        case "model_type" | "dict_type":
            return f"must be a map of keys to values, not {given!r}"
        case "tuple_type":
            return f"must be a list, not {given!r}"
        case _:
            text = details["msg"]
            for start in ("Input should be ", "Value error, "):
                text = text.removeprefix(start)
            return f"must be {_plain(text)}, not {given!r}"


def _plain(text: str) -> str:
    """Pydantic's words without those that mean something to a programmer alone."""
    for old, new in _WORDS.items():
        text = text.replace(old, new)
    return text


_WORDS = {
    "a valid string": "a text (put it in quotes)",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}


def _unknown_key(loc: Loc) -> str:
    key = str(loc[-1])
    return f"unknown key {key!r}.{suggest(key, known_keys(loc[:-1]))}"


def known_keys(loc: Loc) -> list[str]:
    """The keys that the schema has at a location; empty where anything goes."""
    kind: Any = Recipe
    for part in loc:
        kind = _inner(kind, str(part))
    return sorted(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _inner(kind: Any, part: str) -> Any:
    """The type that a schema type holds under a key or index."""
    if isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, Plugin):
        field = kind.model_fields.get(part)
        return _bare(field.annotation) if field else None
    if get_origin(kind) is tuple:
        return _bare(get_args(kind)[0])
    return None


def _bare(annotation: Any) -> Any:
    """An annotation without `Annotated` and without `None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [arg for arg in get_args(annotation) if arg is not type(None)]
        return _bare(rest[0]) if len(rest) == 1 else None
    return annotation
