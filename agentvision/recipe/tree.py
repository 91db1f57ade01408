"""YAML as a tree that knows where each value stands.

A `Node` is a value with its `Place`; a child of a map also knows where its key stands. Trees are immutable: `overlay`
gives a new one, so a parent recipe, a profile and an override merge without losing where anything came from. Aliases,
merge keys and tags are refused: `extends:` and `profiles:` are the one way to share values. YAML is 1.2: `1e-6` is a
number, `no` is a string.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml import nodes as yaml_nodes
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from agentvision.recipe.problems import KeyPath, Place, Problem

MakePlace: TypeAlias = Callable[[int, int], Place]
"""From a line and a column that count from 0."""

_TAG = "tag:yaml.org,2002:"
_TEXTS = frozenset(_TAG + kind for kind in ("str", "timestamp", "merge", "value"))
_NUMBERS = frozenset(_TAG + kind for kind in ("int", "float", "bool", "null"))


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

    @property
    def children(self) -> dict[str, Node]:
        """A map's or list's children by key or index; empty for scalars."""
        return self.map or {str(i): child for i, child in enumerate(self.list or ())}

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if self.map is not None:
            return {key: child.plain() for key, child in self.map.items()}
        return [child.plain() for child in self.list] if self.list is not None else self.value

    def leaves(self, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
        """(path, node) of every node that has no children."""
        if not self.children:
            yield path, self
        for key, child in self.children.items():
            yield from child.leaves((*path, key))

    def moved(self, move: Callable[[Place], Place]) -> Node:
        """The same tree with every place changed."""
        value = self.value
        if self.map is not None:
            value = {key: child.moved(move) for key, child in self.map.items()}
        elif self.list is not None:
            value = [child.moved(move) for child in self.list]
        return Node(value, move(self.place), move(self.key) if self.key else None)


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

    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
        if root is None:
            return Node({}, place(0, 0)), []
        reader = _Reader(place, yaml.constructor)
        return reader.read(root, ()), reader.problems
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = "; ".join(str(part) for part in (error.context, error.problem) if part)
        if "'\\t'" in what:
            what += "; indent with spaces, not tabs"
        return None, [Problem(place(mark.line, mark.column) if mark else None, (), f"this is not YAML: {what}")]
    except YAMLError as error:
        before = text[: getattr(error, "position", 0)]
        spot = place(before.count("\n"), len(before) - before.rfind("\n") - 1)
        return None, [Problem(spot, (), "this is not YAML: a control character stands here")]
    except RecursionError:
        return None, [Problem(place(0, 0), (), "this is nested too deeply to be read")]
    except (ValueError, LookupError) as error:  # the YAML library's own slips, on escapes and directives
        return None, [Problem(place(0, 0), (), f"this is not YAML: {error}")]


class _Reader:
    """Turns composed YAML into nodes, gathering problems instead of stopping at the first."""

    def __init__(self, place: MakePlace, constructor: Any) -> None:
        self.problems: list[Problem] = []
        self._place = place
        self._constructor = constructor
        self._seen: set[int] = set()

    def read(self, node: Any, path: KeyPath, key: Place | None = None) -> Node:
        place = self._place(node.start_mark.line, node.start_mark.column)
        if id(node) in self._seen:
            self._problem(
                key or place, path, "an alias is not read; write the value again, or use extends: or profiles:"
            )
            return Node(None, place, key)
        self._seen.add(id(node))
        value: Any = None
        if isinstance(node, yaml_nodes.MappingNode) and node.tag == _TAG + "map":
            value = self._map(node, path)
        elif isinstance(node, yaml_nodes.SequenceNode) and node.tag == _TAG + "seq":
            value = [self.read(child, (*path, str(i))) for i, child in enumerate(node.value)]
        elif isinstance(node, yaml_nodes.ScalarNode) and node.tag in _TEXTS:
            value = self._text(node.value, path, place)
        elif isinstance(node, yaml_nodes.ScalarNode) and node.tag in _NUMBERS:
            value = self._number(node, path, place)
        else:
            tag = str(node.tag).replace(_TAG, "!!")
            self._problem(place, path, f"the tag {tag!r} is not read; write a plain value")
        return Node(value, place, key)

    def _map(self, node: Any, path: KeyPath) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for key_node, value_node in node.value:
            spot = self._place(key_node.start_mark.line, key_node.start_mark.column)
            if not isinstance(key_node, yaml_nodes.ScalarNode):
                self._problem(spot, path, "a key must be a plain word")
                continue
            key = self._text(key_node.value, path, spot)
            if key_node.tag == _TAG + "merge":
                self._problem(spot, (*path, key), "a merge key is not read; use extends: or profiles:")
            elif key in result:
                first = result[key].key or spot
                self._problem(spot, (*path, key), f"this key stands twice, first in line {first.line}; keep one")
            else:
                result[key] = self.read(value_node, (*path, key), spot)
        return result

    def _number(self, node: Any, path: KeyPath, place: Place) -> int | float | bool | None:
        try:
            value = self._constructor.construct_object(node)
        except (YAMLError, ValueError):
            value = math.nan
        if isinstance(value, float) and not math.isfinite(value):
            self._problem(place, path, f"{node.value!r} is not a finite {node.tag.removeprefix(_TAG)}")
            return None
        return value

    def _text(self, text: str, path: KeyPath, place: Place) -> str:
        if any("\ud800" <= char <= "\udfff" for char in text):
            self._problem(place, path, "half of a surrogate pair is not a character; write the character itself")
            return ""
        return text

    def _problem(self, place: Place, path: KeyPath, what: str) -> None:
        self.problems.append(Problem(place, path, what))


# --- writing --------------------------------------------------------------------------------------------------------

_BARE = re.compile(r"[A-Za-z][A-Za-z0-9_./@-]*(?: [A-Za-z0-9_./@-]+)*")
_KEYWORDS = frozenset({"null", "true", "false", "y", "yes", "no", "on", "off"})


def to_yaml(value: Any) -> str:
    """A plain value as YAML on one line, which `parse` reads back equal. Raises `TypeError` for what JSON lacks."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{to_yaml(key)}: {to_yaml(child)}' for key, child in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_yaml, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _BARE.fullmatch(value) and value.lower() not in _KEYWORDS:
        return value
    return "".join(c if c.isprintable() else _escape(c) for c in json.dumps(value, ensure_ascii=False))


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
