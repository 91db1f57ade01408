"""Questions about a scene of the tiny world: about its writing, which may need the original, and about its shapes.

A question names a card by its colour, never by the size of its writing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from agentvision.data.scene import COLOURS, SHAPES, Scene

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
    writing has more than one. `noun` says what the writing is ("type"), as the thoughts of a demonstration will.
    """
    card = _pick([card for card in scene.cards if card.large != hard], rng)
    name = f"the {card.colour} card"
    kind = _pick(["code", "code", "first", "last"] if len(card.text) > 1 else ["code"], rng)
    answer = {"code": card.text, "first": card.text[0], "last": card.text[-1]}[kind]
    meta = {
        "kind": kind,
        "needs_original": hard,
        "sees": f"small {noun}" if hard else f"large {noun}",
        "grading": "exact",
        "guesses": {"characters": characters, "length": len(answer)},
    }
    return Question(phrases[kind].format(name=name), answer, meta)


def ask_about_shapes(scene: Scene, rng: np.random.Generator) -> Question:
    """A question about a scene's shapes, which the first view answers."""
    shape = _pick(scene.shapes, rng)
    kind = _pick(["colour", "shape"], rng)
    if kind == "colour":
        question, answer, words = f"What colour is the {shape.kind}?", shape.colour, list(COLOURS)
    else:
        question, answer, words = f"Which shape is {shape.colour}?", shape.kind, list(SHAPES)
    meta = {
        "kind": kind,
        "needs_original": False,
        "sees": "a shape",
        "grading": "exact",
        "guesses": {"words": words},
    }
    return Question(question, answer, meta)


def _pick(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]
