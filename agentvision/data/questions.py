"""Questions about a scene of the tiny world: about its writing, which may need the original, and about its shapes.

A question names a card by its colour or by the corner that it stands in, never by the size of its writing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from agentvision.data.scene import COLOURS, CORNERS, SHAPES, Scene

_PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "star": "stars", "cross": "crosses"}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and what is known of it: a sample's `meta`."""

    text: str
    answer: str
    meta: Mapping[str, Any]


def ask_about_writing(
    scene: Scene,
    rng: np.random.Generator,
    *,
    hard: bool,
    phrases: Mapping[str, str],
    characters: str,
    noun: str,
) -> Question:
    """A question about the writing on a card, small if `hard` and else large.

    `phrases` hold a `{name}` each: "code" asks for the whole writing, "first" and "last" for one character, where the
    writing has more than one. A card in a corner is named by that corner half of the time. `noun` says what the writing
    is ("type"), as the thoughts of a demonstration will.
    """
    cards = [card for card in scene.cards if card.large != hard]
    cornered = [card for card in scene.cornered() if card.large != hard]
    if cornered and rng.random() < 0.5:
        card = _pick(cornered, rng)
        named_by, name = "corner", next(f"the card at the {c}" for c in CORNERS if scene.corner(c) == card.cell)
    else:
        card = _pick(cards, rng)
        named_by, name = "colour", f"the {card.colour} card"
    kind = _pick(["code", "code", "first", "last"] if len(card.text) > 1 else ["code"], rng)
    answer = {"code": card.text, "first": card.text[0], "last": card.text[-1]}[kind]
    meta = {
        "kind": f"{kind} by {named_by}",
        "needs_original": hard,
        "sees": f"small {noun}" if hard else f"large {noun}",
        "answers": {"characters": characters, "length": len(answer)},
    }
    return Question(phrases[kind].format(name=name), answer, meta)


def ask_about_shapes(scene: Scene, rng: np.random.Generator) -> Question:
    """A question about a scene's shapes, which the first view answers."""
    kinds = [shape.kind for shape in scene.shapes]
    colours = [shape.colour for shape in scene.shapes]
    options = ["count"]
    options += ["colour"] if any(kinds.count(kind) == 1 for kind in kinds) else []
    options += ["shape"] if any(colours.count(colour) == 1 for colour in colours) else []
    kind = options[rng.integers(len(options))]
    if kind == "count":
        named = kinds[rng.integers(len(kinds))]
        question, answer, words = f"How many {_PLURALS[named]} are there?", str(kinds.count(named)), list("12345")
    elif kind == "colour":
        shape = _pick([s for s in scene.shapes if kinds.count(s.kind) == 1], rng)
        question, answer, words = f"What colour is the {shape.kind}?", shape.colour, list(COLOURS)
    else:
        shape = _pick([s for s in scene.shapes if colours.count(s.colour) == 1], rng)
        question, answer, words = f"Which shape is {shape.colour}?", shape.kind, list(SHAPES)
    meta = {
        "kind": kind,
        "needs_original": False,
        "sees": "shapes" if kind == "count" else "a shape",
        "answers": {"words": words},
    }
    return Question(question, answer, meta)


def _pick(items: list[T], rng: np.random.Generator) -> T:
    return items[rng.integers(len(items))]
