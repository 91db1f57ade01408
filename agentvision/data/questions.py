"""Questions about a scene of the tiny world: about its writing, which may need the original, and about its shapes.

A question names a card by its colour, never by the size of its writing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_args

import numpy as np
from PIL import Image

from agentvision.data import scene as world
from agentvision.data.scene import COLOURS, SHAPES, Card, Scene, Shape, Split
from agentvision.errors import DataError
from agentvision.types import Sample

T = TypeVar("T")

LOOK = '<tool_call>{"name": "resize_image", "arguments": {}}</tool_call>'
"""The call that asks for the original."""

_SIZES = {"train": 100_000, "test": 500}


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer.

    `sees` is what the first view tells of the thing that is asked about, `clear` what the original tells; `meta` is what
    else a sample says of its question.
    """

    text: str
    answer: str
    sees: str
    clear: str
    hard: bool
    meta: Mapping[str, Any]


class SceneQuestions(ABC):
    """A data set of the tiny world, as a sequence of `Sample`; holds no state but its settings.

    Sample `i` is a function of (seed, split, i) alone. `size` defaults to 100,000 for `train` and 500 for `test`; images
    are (32·columns, 32·rows) pixels. `meta` of a sample: `kind`, `needs_original`, `sees` and `clear` (what the first view
    and the original tell) and `guesses` (characters and length that a guess would be drawn from, or the words).
    """

    name: ClassVar[str]
    """First part of a sample's id."""
    phrases: ClassVar[Mapping[str, str]]
    """Wordings with a `{name}` each: of the whole writing (`code`), of its `first` and of its `last` character."""
    characters: str
    """What writing is made of."""

    def __init__(
        self, *, split: Split, seed: int, size: int | None, hard_share: float, columns: int, rows: int
    ) -> None:
        if split not in get_args(Split):
            raise DataError(f"split is {split!r}; it must be 'train' or 'test'")
        if not 0 <= hard_share <= 1:
            raise DataError(f"hard_share is {hard_share!r}; it must lie between 0 and 1")
        world.check_grid(columns, rows)
        self.split: Split = split
        self.seed, self.size = seed, _SIZES[split] if size is None else size
        self.hard_share, self.columns, self.rows = hard_share, columns, rows

    @abstractmethod
    def text(self, rng: np.random.Generator) -> str:
        """Draw what a card says."""

    @abstractmethod
    def stamp(self, text: str, large: bool, rng: np.random.Generator) -> Image.Image:
        """The ink of what a card says (a `scene.Stamp`)."""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.size:
            raise IndexError(f"{type(self).__name__} has {self.size} samples; there is no sample {i}")
        scene, rng = self._begin(i)
        asked = self._ask(scene, rng)
        image = world.draw(scene, rng, stamp=self.stamp)
        meta = {
            **asked.meta,
            "needs_original": asked.hard,
            "sees": asked.sees,
            "clear": asked.clear,
            "grading": "exact",
        }
        return Sample(f"{self.name}-{self.split}-{self.seed}-{i}", asked.text, (image,), asked.answer, meta)

    def scene(self, i: int) -> Scene:
        """What the picture of sample `i` holds; for measuring, and for teaching the vision tower to read."""
        return self._begin(i)[0]

    def about_card(self, card: Card, rng: np.random.Generator) -> Question:
        """A question about the writing on a card: half the time all of it, where it has more than one character."""
        kind = _pick(["code", "code", "first", "last"] if len(card.text) > 1 else ["code"], rng)
        answer = {"code": card.text, "first": card.text[0], "last": card.text[-1]}[kind]
        return Question(
            self.phrases[kind].format(name=f"the {card.colour} card"),
            answer,
            sees=f"{card.colour} large {card.text}" if card.large else f"{card.colour} small",
            clear=f"{card.colour} clear {card.text}",
            hard=not card.large,
            meta={"kind": kind, "guesses": {"characters": self.characters, "length": len(answer)}},
        )

    def demonstration(self, sample: Sample, *, look: bool, seed: int = 0) -> list[str]:
        """The assistant's turns for a supervised warm start: a tool call and then the answer, or one direct turn.

        The thoughts name the thing that is asked about and say what is seen of it, not what to do. A direct answer to a
        question that needs the original cannot be read, so it is a guess drawn at random from what an answer may be;
        the true answer has no part in it.
        """
        meta = sample.meta
        if look:
            return [f"{thought(meta['sees'])}{LOOK}", f"{thought(meta['clear'])}<answer>{sample.answer}</answer>"]
        answer = sample.answer
        if meta["needs_original"]:
            rng = np.random.default_rng([seed, *sample.id.encode()])
            characters, length = meta["guesses"]["characters"], meta["guesses"]["length"]
            answer = "".join(characters[k] for k in rng.integers(len(characters), size=length))
        return [f"{thought(meta['sees'])}<answer>{answer}</answer>"]

    def _begin(self, i: int) -> tuple[Scene, np.random.Generator]:
        """The scene of sample `i`, and the generator that its question and drawing go on with."""
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), i])
        scene = world.compose(rng, split=self.split, text=self.text, columns=self.columns, rows=self.rows)
        return scene, rng

    def _ask(self, scene: Scene, rng: np.random.Generator) -> Question:
        hard = bool(rng.random() < self.hard_share)
        if not hard and rng.random() < 0.5:
            shape = _pick(scene.shapes, rng)
            return about_shape(shape, _pick(["colour", "shape"], rng))
        return self.about_card(_pick([card for card in scene.cards if card.large != hard], rng), rng)


def about_shape(shape: Shape, kind: str) -> Question:
    """A question about the "colour" or the "shape" of a shape, which the first view answers."""
    if kind == "colour":
        text, answer, sees, words = f"What colour is the {shape.kind}?", shape.colour, shape.kind, list(COLOURS)
    else:
        text, answer, sees, words = f"Which shape is {shape.colour}?", shape.kind, shape.colour, list(SHAPES)
    sees = f"{sees} {answer}"
    return Question(text, answer, sees, sees, hard=False, meta={"kind": kind, "guesses": {"words": words}})


def thought(sees: str) -> str:
    """A thought in the turn's grammar; the space before its first word makes it the same token as in the question."""
    return f"<think> {sees}</think>\n"


def _pick(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]
