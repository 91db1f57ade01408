"""Overrides: `key.path=value`, laid on a recipe's tree.

The value is YAML. A map is laid on what stands there, everything else takes its place. In a list the next key is an
index, or the name of a plug-in that stands there once: `rewards.2.ratio_penalty.threshold=0.15` and
`rewards.ratio_penalty.threshold=0.15` say the same. Each key and value keeps its column in the override's text, so that
an error points at it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from agentvision.recipe.problems import Place, Problem, nearest
from agentvision.recipe.tree import Node, overlay, parse, to_yaml

Overrides: TypeAlias = "Sequence[str] | Mapping[str, Any]"
"""`key.path=value` texts, or key paths and their values."""


@dataclass(frozen=True, slots=True)
class _Override:
    """A parsed override: its keys, where each stands, and the value."""

    keys: tuple[tuple[str, Place], ...]
    value: Node


class _Nowhere(Exception):
    """The path leads nowhere: where, and why."""

    def __init__(self, place: Place, what: str) -> None:
        super().__init__(what)
        self.place, self.what = place, what


def apply(tree: Node, overrides: Overrides) -> tuple[Node, list[Problem]]:
    """The tree with all overrides that could be applied, in order, and the problems of the others."""
    if isinstance(overrides, str):
        raise TypeError("overrides are a list of 'key.path=value' or a mapping, not one string")
    if isinstance(overrides, Mapping):
        overrides = [f"{key}={to_yaml(_plain(value))}" for key, value in overrides.items()]
    problems: list[Problem] = []
    for number, text in enumerate(overrides, start=1):
        parsed = _parse(text, number)
        if isinstance(parsed, Problem):
            problems.append(parsed)
            continue
        try:
            tree = _put(tree, parsed.keys, parsed.value)
        except _Nowhere as error:
            problems.append(Problem(error.place, tuple(key for key, _ in parsed.keys), error.what))
    return tree, problems


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _parse(text: str, number: int) -> _Override | Problem:
    dotted, equals, value = text.partition("=")

    def place(index: int) -> Place:
        return Place("override", number, index + 1, text, layer="override")

    if not equals:
        return Problem(place(0), (), f"an override is key.path=value, not {text!r}")
    keys: list[tuple[str, Place]] = []
    index = 0
    for key in dotted.split("."):
        if not key or key != key.strip():
            return Problem(place(index), (), f"an override is key.path=value; {dotted!r} is no key path")
        keys.append((key, place(index)))
        index += len(key) + 1
    path = tuple(key for key, _ in keys)
    if not value.strip():
        return Problem(place(index), path, "the value is missing; write null for none, '' for an empty text")
    starts = [index]
    for line in value.split("\n"):
        starts.append(starts[-1] + len(line) + 1)

    def move(spot: Place) -> Place:
        return place(starts[spot.line - 1] + spot.column - 1)

    node, problems = parse(value, "override")
    if node is None or problems:
        first = problems[0]
        return Problem(move(first.place) if first.place else place(index), (*path, *first.path), first.what)
    return _Override(tuple(keys), node.moved(move))


def _put(root: Node | None, keys: Sequence[tuple[str, Place]], leaf: Node) -> Node:
    """`root` with `leaf` laid on what stands at `keys`; maps on the way are made where there are none."""
    if not keys:
        return leaf if root is None else overlay(root, leaf)
    (head, place), *rest = keys
    if root is not None and root.list is not None:
        index = _index(root.list, head, place)
        item = root.list[index]
        if not head.isdecimal():
            item, rest = _as_map(item), [(head, place), *rest]
        elif rest and (name := _name(item)) not in (None, rest[0][0]):
            below = ".".join(key for key, _ in rest)
            raise _Nowhere(
                rest[0][1],
                f"item {head} is {name!r}; its settings are named after it: {head}.{name}.{below} or {name}.{below}",
            )
        return replace(root, value=[*root.list[:index], _put(item, rest, leaf), *root.list[index + 1 :]])
    children = (root.map if root else None) or {}
    child = replace(_put(children.get(head), rest, leaf), key=place)
    return Node({**children, head: child}, root.place if root else place, root.key if root else None)


def _name(item: Node) -> str | None:
    """The name of a plug-in that stands in a list; None for an item that is none."""
    return item.value if isinstance(item.value, str) else next(iter(item.map or ()), None)


def _as_map(item: Node) -> Node:
    """A plug-in that stands in a list by its bare name, as a map of that name to no parameters."""
    if isinstance(item.value, str):
        return replace(item, value={item.value: Node({}, item.place, item.place)})
    return item


def _index(items: Sequence[Node], head: str, place: Place) -> int:
    if head.isdecimal():
        if int(head) < len(items):
            return int(head)
        raise _Nowhere(place, f"there is no item {head}; the list has {len(items)}, counted from 0")
    names = [_name(item) or "" for item in items]
    found = [i for i, name in enumerate(names) if name == head]
    if len(found) == 1:
        return found[0]
    if not found:
        raise _Nowhere(place, f"no item here is called {head!r}{nearest(head, {*names} - {''}, or_all=True)}")
    raise _Nowhere(place, f"{len(found)} items here are called {head!r}; name one by its index, such as {found[0]}")
