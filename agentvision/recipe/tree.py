"""YAML as a tree that knows where each value stands.

A `Node` is a value with its `Place`; children of a map also know where their key stands. Trees are immutable: `overlay` and
`put` give new ones, so a parent recipe, a profile and an override merge without losing where anything came from.
Anchors, merge keys and tags are refused: `extends:` and `profiles:` are the one way to share values. YAML is 1.2: `1e-6` is a
number, `no` is a string.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml import nodes as yaml_nodes
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from agentvision.errors import suggest

Scalar: TypeAlias = str | int | float | bool | None
Path: TypeAlias = tuple[str, ...]
"""Keys and list indices from the root, as strings."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null"))
_AS_TEXT = frozenset({_TAG + "timestamp", _TAG + "merge", _TAG + "value"})


@dataclass(frozen=True, slots=True)
class Place:
    """A spot in a text: `file` as a person would name it, `line` and `column` from 1, `source` the line itself."""

    file: str
    line: int
    column: int
    source: str
    layer: str = ""
    """`profile NAME` or `override` where the value came in that way."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    @property
    def label(self) -> str:
        """Short form for the resolved recipe: `visionthink.yaml:12`, `profile tiny, visionthink.yaml:60`, `override`."""
        spot = f"{self.file.replace(chr(92), '/').rpartition('/')[2]}:{self.line}"
        if self.layer == "override":
            return "override"
        return f"{self.layer}, {spot}" if self.layer else spot


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place. `value` is a scalar, a dict of nodes or a list of nodes."""

    value: Any
    place: Place
    key: Place | None = None
    """Where its key stands, for a value inside a map."""

    @property
    def map(self) -> dict[str, Node] | None:
        return self.value if isinstance(self.value, dict) else None

    @property
    def list(self) -> list[Node] | None:
        return self.value if isinstance(self.value, list) else None

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def leaves(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """(path, node) of every node that has no children."""
        children = children_of(self)
        if not children:
            yield path, self
        for key, child in children.items():
            yield from child.leaves((*path, key))

    def in_layer(self, layer: str) -> Node:
        """The same tree, marked as having come in by a profile or an override."""
        value = self.value
        if isinstance(value, dict):
            value = {key: child.in_layer(layer) for key, child in value.items()}
        elif isinstance(value, list):
            value = [child.in_layer(layer) for child in value]
        key = self.key and replace(self.key, layer=layer)
        return Node(value, replace(self.place, layer=layer), key)


@dataclass(frozen=True, slots=True)
class Origins:
    """Labels of where values came from. Left out of comparison, so that a recipe equals its resolved copy."""

    labels: Mapping[Path, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a recipe: where (None: nowhere in particular), at which key, and what, with its fix."""

    place: Place | None
    path: Path
    what: str


def children_of(node: Node) -> dict[str, Node]:
    """A map's or list's children by key or index; empty for scalars."""
    if isinstance(node.value, dict):
        return node.value
    return {str(i): child for i, child in enumerate(node.value)} if isinstance(node.value, list) else {}


def overlay(base: Node, over: Node) -> Node:
    """`over` laid on `base`: maps are merged key by key, everything else (lists too) is replaced."""
    if base.map is None or over.map is None:
        return over
    merged = dict(base.map)
    for key, child in over.map.items():
        merged[key] = overlay(merged[key], child) if key in merged else child
    return replace(over, value=merged)


# --- reading --------------------------------------------------------------------------------------------------------


def parse(text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """Read one YAML document. The node is None when the text could not be read at all; problems list all there are."""
    lines = text.split("\n")

    def place(line: int, column: int) -> Place:
        return Place(file, line + 1, column + 1, lines[line].rstrip("\r") if line < len(lines) else "")

    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = "; ".join(str(part) for part in (error.context, error.problem) if part)
        spot = place(mark.line, mark.column) if mark else None
        return None, [Problem(spot, (), f"this is not YAML: {what}{_tab_hint(what)}")]
    except YAMLError as error:
        position = getattr(error, "position", None)
        spot = _spot_of(text, position, place) if isinstance(position, int) else None
        return None, [Problem(spot, (), "this is not YAML: it holds a control character")]
    except RecursionError:
        return None, [Problem(None, (), f"{file}: nested too deeply")]
    except ValueError as error:
        return None, [Problem(None, (), f"{file}: this is not YAML: {error}")]
    if root is None:
        return Node({}, place(0, 0)), []
    reader = _Reader(place)
    try:
        node = reader.read(root, ())
    except RecursionError:
        return None, [Problem(None, (), f"{file}: nested too deeply")]
    return node, reader.problems


def _tab_hint(what: str) -> str:
    return "; indent with spaces, not tabs" if "'\\t'" in what else ""


def _spot_of(text: str, position: int, place: Callable[[int, int], Place]) -> Place:
    before = text[:position]
    return place(before.count("\n"), position - (before.rfind("\n") + 1))


class _Reader:
    """Turns composed YAML into nodes, gathering problems instead of stopping at the first."""

    def __init__(self, place: Callable[[int, int], Place]) -> None:
        self.problems: list[Problem] = []
        self._place = place
        self._seen: set[int] = set()
        self._construct = YAML(typ="safe", pure=True).constructor

    def read(self, node: Any, path: Path, key: Place | None = None) -> Node:
        place = self._place(node.start_mark.line, node.start_mark.column)
        if id(node) in self._seen:
            self._problem(key or place, path, "anchors and aliases are not read: write the value again, or use `extends:`")
            return Node(None, place, key)
        self._seen.add(id(node))
        if isinstance(node, yaml_nodes.MappingNode) and node.tag == _TAG + "map":
            return Node(self._map(node, path), place, key)
        if isinstance(node, yaml_nodes.SequenceNode) and node.tag == _TAG + "seq":
            return Node([self.read(child, (*path, str(i))) for i, child in enumerate(node.value)], place, key)
        if isinstance(node, yaml_nodes.ScalarNode) and node.tag in _SCALARS | _AS_TEXT:
            return Node(self._scalar(node, path, place), place, key)
        self._problem(place, path, f"the tag {str(node.tag).replace(_TAG, '!!')!r} is not read: write a plain value")
        return Node(None, place, key)

    def _map(self, node: Any, path: Path) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for key_node, value_node in node.value:
            spot = self._place(key_node.start_mark.line, key_node.start_mark.column)
            if not isinstance(key_node, yaml_nodes.ScalarNode):
                self._problem(spot, path, "a key must be a plain word")
                continue
            key = self._text(key_node.value, path, spot)
            if key_node.tag == _TAG + "merge":
                self._problem(spot, (*path, key), "merge keys are not read: use `extends:` or `profiles:`")
                continue
            if key in result:
                first = result[key].key
                self._problem(spot, (*path, key), f"this key stands twice; first in line {first.line if first else '?'}")
                continue
            result[key] = self.read(value_node, (*path, key), spot)
        return result

    def _scalar(self, node: Any, path: Path, place: Place) -> Scalar:
        if node.tag in _AS_TEXT or node.tag == _TAG + "str":
            return self._text(node.value, path, place)
        try:
            value = self._construct.construct_object(node)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError
            return value
        except (YAMLError, ValueError):
            self._problem(place, path, f"{node.value!r} is not a finite {node.tag.removeprefix(_TAG)}")
            return None

    def _text(self, text: str, path: Path, place: Place) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            self._problem(place, path, "a lone surrogate is not a character")
            return ""
        return text

    def _problem(self, place: Place, path: Path, what: str) -> None:
        self.problems.append(Problem(place, path, what))


# --- overrides ------------------------------------------------------------------------------------------------------


def put(root: Node | None, path: Sequence[tuple[str, Place]], leaf: Node) -> Node | tuple[Place, str]:
    """`root` with `leaf` laid on what stands at `path`, a list of keys with their places in the override's text.

    Maps on the way are made where there are none. In a list the next key is an index, or the name of a plug-in that stands
    there once (`rewards.format.weight`). Where the path leads nowhere, returns the place and what is wrong.
    """
    if not path:
        return leaf if root is None else overlay(root, leaf)
    (head, place), *rest = path
    if root is not None and root.list is not None:
        found = _index(root.list, head)
        if isinstance(found, str):
            return place, found
        item = root.list[found]
        if not head.isdecimal():
            item = _as_map(item)
            rest = [(head, place), *rest]
        child = put(item, rest, leaf)
        if not isinstance(child, Node):
            return child
        return replace(root, value=[*root.list[:found], child, *root.list[found + 1 :]])
    children = (root.map if root else None) or {}
    child = put(children.get(head), rest, leaf)
    if not isinstance(child, Node):
        return child
    child = replace(child, key=place)
    return Node({**children, head: child}, root.place if root else place, root.key if root else place)


def _as_map(item: Node) -> Node:
    """A plug-in that stands in a list by its bare name, as a map of that name to no parameters."""
    if isinstance(item.value, str):
        return replace(item, value={item.value: Node({}, item.place, item.place)})
    return item


def _index(items: Sequence[Node], head: str) -> int | str:
    if head.isdecimal():
        return int(head) if int(head) < len(items) else f"there is no item {head}; the list has {len(items)}"
    names = [item.value if isinstance(item.value, str) else next(iter(item.map or ()), "") for item in items]
    match [i for i, name in enumerate(names) if name == head]:
        case [index]:
            return index
        case []:
            return f"no item of this list is called {head!r}.{suggest(head, set(names) - {''})}"
        case several:
            return f"{len(several)} items are called {head!r}; use an index, such as {several[0]}"
