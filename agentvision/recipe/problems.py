"""What is wrong with a recipe, all of it at once, each where it stands.

Each reads `file:line:col: key.path: what; did you mean …?`, then the line it stands in and a caret under the spot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TypeAlias

from agentvision.errors import RecipeError, suggest

KeyPath: TypeAlias = tuple[str, ...]
"""Keys and list indices from the root, as strings."""


@dataclass(frozen=True, slots=True)
class Place:
    """A spot in a text: `file` as a person would name it, `line` and `column` from 1, `source` the line itself.

    `layer` is `profile NAME` or `override` where the value came in that way; an override's line is its number.
    """

    file: str
    line: int
    column: int
    source: str
    layer: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    @property
    def label(self) -> str:
        """For the resolved recipe: `visionthink.yaml:12`, `profile tiny, visionthink.yaml:60`, `override`."""
        if self.layer == "override":
            return "override"
        spot = f"{PurePath(self.file).name}:{self.line}"
        return f"{self.layer}, {spot}" if self.layer else spot


@dataclass(frozen=True, slots=True)
class Origins:
    """Labels of where values came from. Left out of comparison, so that a recipe equals its resolved copy."""

    labels: Mapping[KeyPath, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: where (None: nowhere in particular), at which key, and what, with its fix."""

    place: Place | None
    path: KeyPath
    what: str


class InvalidRecipe(RecipeError):
    """A recipe with these problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(render(problems))
        self.problems = tuple(problems)


def render(problems: Sequence[Problem]) -> str:
    """The text of a `RecipeError`: a head line when there are several, then one block a problem, in file order."""
    ordered = sorted(problems, key=lambda p: (p.place.file, p.place.line, p.place.column) if p.place else ("", 0, 0))
    blocks = [_block(problem) for problem in dict.fromkeys(ordered)]
    return "\n".join(blocks if len(blocks) == 1 else [f"{len(blocks)} problems in the recipe:", *blocks])


def _block(problem: Problem) -> str:
    place = problem.place
    head = ": ".join(filter(None, [str(place or ""), ".".join(problem.path), problem.what]))
    if place is None:
        return head
    number = "" if place.layer == "override" else str(place.line)
    source = "".join(c if c.isprintable() else " " for c in place.source)
    return f"{head}\n{number:>6} | {source}\n{'':>6} | {' ' * (place.column - 1)}^"


def nearest(given: object, known: Iterable[str], *, or_all: bool = False) -> str:
    """'; did you mean …?' for the nearest of the known names; where none is near, nothing, or '; known: …'."""
    hint = suggest(given, known) if isinstance(given, str) else ""
    if not hint or not (or_all or hint.startswith(" Did")):
        return ""
    return f"; {hint[1].lower()}{hint[2:].removesuffix('.')}"
