"""A scene of the tiny world: coloured cards that carry writing, and shapes, on a grid of cells.

A cell is 32x32 pixels: four visual tokens of the tiny model in the original (a token is 16x16), one in the first view,
whose sides are half as long. Writing comes in two sizes. The large fills its card and stays legible in the first view; the
small is about six pixels high, three in the first view, where nothing but a smudge is left. A scene always holds both
sizes, so how hard a question is depends on what it asks for.

Every scene belongs to a split by construction: the numbers of the cells that hold its cards add up to an even number in
`train` and to an odd one in `test`, so no picture can be in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from agentvision.errors import DataError

Split = Literal["train", "test"]
Colour = tuple[int, int, int]

CELL_PX = 32
CARD_PX = 28
SMALL_PITCH_PX = 8
"""Small writing has a character every eight pixels: a patch of the tiny model's."""
COLUMNS, ROWS = 3, 2
COLOURS: Mapping[str, Colour] = {
    "red": (200, 48, 48),
    "green": (36, 140, 64),
    "blue": (52, 84, 200),
    "yellow": (232, 188, 40),
    "purple": (136, 60, 164),
    "black": (44, 44, 48),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
_CARDS, _SHAPES = 3, 2
_INK_ON_DARK, _INK_ON_LIGHT = (252, 252, 248), (28, 24, 20)

Stamp = Callable[[str, bool, np.random.Generator], Image.Image]
"""(text, large, rng) -> an "L" image of the ink, no larger than a card."""


@dataclass(frozen=True, slots=True)
class Card:
    """A coloured card with writing on it; `cell` counts row by row from the top left."""

    cell: int
    colour: str
    text: str
    large: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """A coloured shape in a cell."""

    cell: int
    colour: str
    kind: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture holds, before it is drawn."""

    cards: tuple[Card, ...]
    shapes: tuple[Shape, ...]
    columns: int
    rows: int

    @property
    def split(self) -> Split:
        return "test" if sum(card.cell for card in self.cards) % 2 else "train"


def check_grid(columns: int, rows: int) -> None:
    """Raise `DataError` when a grid has no room for the cards and the shapes."""
    if columns * rows < _CARDS + _SHAPES:
        raise DataError(f"a grid of {columns} x {rows} cells is too small; it needs {_CARDS + _SHAPES} cells")


def compose(
    rng: np.random.Generator,
    *,
    split: Split,
    text: Callable[[np.random.Generator], str],
    columns: int = COLUMNS,
    rows: int = ROWS,
) -> Scene:
    """Draw a scene at random: three cards and two shapes, all of different colours, in cells of their own.

    One card is written large and one small, the third either way.
    """
    cells = columns * rows
    while True:
        free = rng.permutation(cells).tolist()
        if (sum(free[:_CARDS]) % 2 == 1) == (split == "test"):
            break
    large = rng.permutation([True, False, bool(rng.random() < 0.5)]).tolist()
    names = list(COLOURS)
    colours = [names[i] for i in rng.permutation(len(names))]
    kinds = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    cards = tuple(Card(free[i], colours[i], text(rng), large[i]) for i in range(_CARDS))
    shapes = tuple(Shape(free[_CARDS + i], colours[_CARDS + i], kinds[i]) for i in range(_SHAPES))
    return Scene(cards, shapes, columns, rows)


def draw(scene: Scene, rng: np.random.Generator, *, stamp: Stamp) -> Image.Image:
    """Draw a scene: an RGB image of (32·columns, 32·rows) pixels.

    Tints, the places of things in their cells and the line of a card that small writing stands in vary.
    """
    paper = tuple(int(v) for v in rng.integers(222, 246, 3))
    image = Image.new("RGB", (CELL_PX * scene.columns, CELL_PX * scene.rows), paper)
    pen = ImageDraw.Draw(image)
    for card in scene.cards:
        left, top = _place(card.cell, scene.columns, rng)
        fill = tuple(int(np.clip(v + rng.integers(-14, 15), 0, 255)) for v in COLOURS[card.colour])
        pen.rectangle((left, top, left + CARD_PX - 1, top + CARD_PX - 1), fill=fill)
        ink = stamp(card.text, card.large, rng)
        if card.large:
            x, y = (CARD_PX - ink.width) // 2, (CARD_PX - ink.height) // 2
        else:
            x, y = (CARD_PX - 2 * SMALL_PITCH_PX) // 2, CARD_PX // 2 - SMALL_PITCH_PX * int(rng.integers(2))
        tone = _INK_ON_LIGHT if card.colour == "yellow" else _INK_ON_DARK
        image.paste(Image.new("RGB", ink.size, tone), (left + x, top + y), ink)
    for shape in scene.shapes:
        left, top = _place(shape.cell, scene.columns, rng)
        mask = _shape_mask(shape.kind)
        image.paste(Image.new("RGB", mask.size, COLOURS[shape.colour]), (left, top), mask)
    return image


def _place(cell: int, columns: int, rng: np.random.Generator) -> tuple[int, int]:
    """The top left corner of what stands in a cell, up to a pixel off the centre."""
    margin = (CELL_PX - CARD_PX) // 2
    row, column = divmod(cell, columns)
    x, y = (margin + int(rng.integers(-1, 2)) for _ in range(2))
    return column * CELL_PX + x, row * CELL_PX + y


@cache
def _shape_mask(kind: str) -> Image.Image:
    """A shape's coverage as an "L" image of a card's size; drawn four times as large, so that edges are smooth."""
    over = 4
    side = CARD_PX * over
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    near, far, middle = side * 0.1, side * 0.9, side / 2
    if kind == "circle":
        pen.ellipse((near, near, far, far), fill=255)
    elif kind == "square":
        pen.rectangle((side * 0.16, side * 0.16, side * 0.84, side * 0.84), fill=255)
    elif kind == "triangle":
        pen.polygon([(middle, near), (far, side * 0.86), (near, side * 0.86)], fill=255)
    elif kind == "cross":
        pen.rectangle((side * 0.38, near, side * 0.62, far), fill=255)
        pen.rectangle((near, side * 0.38, far, side * 0.62), fill=255)
    elif kind == "star":
        radii = [side * (0.46 if i % 2 == 0 else 0.19) for i in range(10)]
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        pen.polygon(
            [(middle + r * math.cos(a), middle + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)], fill=255
        )
    else:
        raise ValueError(f"there is no shape {kind!r}; known: {', '.join(SHAPES)}")
    return mask.resize((CARD_PX, CARD_PX), Image.Resampling.LANCZOS)
