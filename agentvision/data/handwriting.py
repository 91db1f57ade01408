"""Handwriting: the tiny world with real scans on its cards, the handwritten digits that scikit-learn bundles.

The scans are 8x8 pixels. A card carries a number of two digits, written large (13x20 pixels a digit, still legible in the
first view) or small (7x7, three or four pixels a side in the first view). `train` and `test` use different scans; `seed`
does not change which. Everything else is as in `glyphs`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from agentvision.data import scene as world
from agentvision.data.questions import SceneQuestions
from agentvision.data.scene import SMALL_PITCH_PX, Split
from agentvision.errors import DataError

LARGE_PX, SMALL_PX = (13, 20), (7, 7)
TEST_SCANS = 400
"""Scans held out for `test`, of 1,797."""


class Handwriting(SceneQuestions):
    """The task as a sequence of `Sample` (see `SceneQuestions`), with the settings of `GlyphVQA`.

    Raises `DataError` when scikit-learn is not installed.
    """

    name = "handwriting"
    phrases: ClassVar = {
        "code": "What is the number on {name}?",
        "first": "What is the first digit on {name}?",
        "last": "What is the last digit on {name}?",
    }
    characters = "0123456789"

    def __init__(
        self,
        *,
        split: Split,
        seed: int = 0,
        size: int | None = None,
        hard_share: float = 0.5,
        columns: int = world.COLUMNS,
        rows: int = world.ROWS,
    ) -> None:
        super().__init__(split=split, seed=seed, size=size, hard_share=hard_share, columns=columns, rows=rows)
        self._scans = scans(split)

    def text(self, rng: np.random.Generator) -> str:
        return f"{rng.integers(10)}{rng.integers(10)}"

    def stamp(self, text: str, large: bool, rng: np.random.Generator) -> Image.Image:
        """A scan of each digit, picked at random from the split's."""
        width, height = LARGE_PX if large else SMALL_PX
        pitch = width if large else SMALL_PITCH_PX
        ink = Image.new("L", (pitch * len(text), height), 0)
        for k, digit in enumerate(text):
            choice = self._scans[int(digit)]
            ink.paste(Image.fromarray(choice[rng.integers(len(choice))]).resize((width, height)), (k * pitch, 0))
        return ink


@cache
def scans(split: Split) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], ...]:
    """The scans of a split, by digit: ten arrays (N, 8, 8), 0 for paper and 255 for ink."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "the data set 'handwriting' needs scikit-learn: pip install 'agentvision[handwriting]'"
        ) from None
    data: Any = load_digits()
    images = (data.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    chosen = order[:TEST_SCANS] if split == "test" else order[TEST_SCANS:]
    return tuple(images[chosen[data.target[chosen] == digit]] for digit in range(10))
