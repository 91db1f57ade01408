"""Handwriting: the tiny world with real scans on its cards, the handwritten digits that scikit-learn bundles.

The scans are 8x8 pixels. A card carries a number of two digits, written large (13x20 pixels a digit, still legible in the
first view) or small (7x7, three or four pixels a side in the first view). `train` and `test` use different scans; `seed`
does not change which. Everything else is as in `glyphs`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import numpy as np
from PIL import Image

from agentvision.data import scene as world
from agentvision.data.questions import ask_about_shapes, ask_about_writing
from agentvision.data.scene import SMALL_PITCH_PX, Scene, Split
from agentvision.errors import DataError
from agentvision.types import Sample

LARGE_PX, SMALL_PX = (13, 20), (7, 7)
TEST_SCANS = 400
"""Scans held out for `test`, of 1,797."""

_SIZES = {"train": 100_000, "test": 500}
PHRASES = {
    "code": "What is the number on {name}?",
    "first": "What is the first digit on {name}?",
    "last": "What is the last digit on {name}?",
}


class Handwriting:
    """The task as a sequence of `Sample`, with the settings of `GlyphVQA`; sample `i` depends on (seed, split, i) alone.

    Raises `DataError` when scikit-learn is not installed.
    """

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
        if split not in get_args(Split):
            raise DataError(f"split is {split!r}; it must be 'train' or 'test'")
        if not 0 <= hard_share <= 1:
            raise DataError(f"hard_share is {hard_share!r}; it must lie between 0 and 1")
        world.check_grid(columns, rows)
        self.split: Split = split
        self.seed, self.size = seed, _SIZES[split] if size is None else size
        self.hard_share, self.columns, self.rows = hard_share, columns, rows
        self._scans = scans(split)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.size:
            raise IndexError(f"Handwriting has {self.size} samples; there is no sample {i}")
        scene, rng = self._begin(i)
        hard = bool(rng.random() < self.hard_share)
        if not hard and rng.random() < 0.5:
            asked = ask_about_shapes(scene, rng)
        else:
            asked = ask_about_writing(
                scene, rng, hard=hard, phrases=PHRASES, characters="0123456789", noun="handwriting"
            )
        image = world.draw(scene, rng, stamp=self._stamp)
        return Sample(f"handwriting-{self.split}-{self.seed}-{i}", asked.text, (image,), asked.answer, asked.meta)

    def scene(self, i: int) -> Scene:
        """What the picture of sample `i` holds; for measuring, and for teaching the vision tower to read."""
        return self._begin(i)[0]

    def _begin(self, i: int) -> tuple[Scene, np.random.Generator]:
        """The scene of sample `i`, and the generator that its question and drawing go on with."""
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), i])
        scene = world.compose(rng, split=self.split, text=_number, columns=self.columns, rows=self.rows)
        return scene, rng

    def _stamp(self, text: str, large: bool, rng: np.random.Generator) -> Image.Image:
        """The ink of a number (a `scene.Stamp`): a scan of each digit, picked at random from the split's."""
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


def _number(rng: np.random.Generator) -> str:
    return f"{rng.integers(10)}{rng.integers(10)}"
