"""GlyphVQA: a seeded, synthetic task in which the question decides whether the first view is enough.

A picture holds cards with a short random code in large or small type, and shapes (see `scene`). A question asks for a code
or one of its characters, naming the card by its colour and never its size, or for a shape or a colour. Only
small type needs the original; which cards carry it has to be seen. Codes are random, so guessing is hopeless unless
`alphabet` and `code_length` are made small on purpose (`alphabet="47", code_length=1, hard_share=0.1`: questions that are
seldom hard and whose answers can be guessed).
"""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agentvision.data import scene as world
from agentvision.data.questions import SceneQuestions
from agentvision.data.scene import CARD_PX, SMALL_PITCH_PX, Split
from agentvision.errors import DataError

ALPHABET = "0123456789"
"""Characters that cannot be taken for one another, and of which two fit side by side on a card."""
MAX_CODE_LENGTH = 2
LARGE_PT, SMALL_PT = 20, 7


class GlyphVQA(SceneQuestions):
    """The task as a sequence of `Sample` (see `SceneQuestions`); `hard_share` of the questions need the original."""

    name = "glyphs"
    phrases: ClassVar = {
        "code": "What does {name} say?",
        "first": "What is the first character on {name}?",
        "last": "What is the last character on {name}?",
    }

    def __init__(
        self,
        *,
        split: Split,
        seed: int = 0,
        size: int | None = None,
        hard_share: float = 0.5,
        alphabet: str = ALPHABET,
        code_length: int = MAX_CODE_LENGTH,
        columns: int = world.COLUMNS,
        rows: int = world.ROWS,
    ) -> None:
        super().__init__(split=split, seed=seed, size=size, hard_share=hard_share, columns=columns, rows=rows)
        if stray := sorted(set(alphabet) - set(ALPHABET)):
            raise DataError(f"alphabet {alphabet!r} holds {''.join(stray)!r}; it may use characters of {ALPHABET!r}")
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise DataError(f"alphabet {alphabet!r} must name at least one character, and each once")
        if not 1 <= code_length <= MAX_CODE_LENGTH:
            raise DataError(
                f"code_length is {code_length!r}; large type has room for 1 to {MAX_CODE_LENGTH} characters"
            )
        self.characters, self.code_length = alphabet, code_length

    def text(self, rng: np.random.Generator) -> str:
        return "".join(self.characters[k] for k in rng.integers(len(self.characters), size=self.code_length))

    def stamp(self, text: str, large: bool, rng: np.random.Generator) -> Image.Image:
        return _large_ink(text) if large else _small_ink(text)


@lru_cache(maxsize=4096)
def _large_ink(text: str) -> Image.Image:
    ink = _glyphs(text, LARGE_PT)
    return ink.resize((min(ink.width, CARD_PX - 1), ink.height), Image.Resampling.LANCZOS)


@lru_cache(maxsize=4096)
def _small_ink(text: str) -> Image.Image:
    """Each character in the middle of a square of `SMALL_PITCH_PX`."""
    ink = Image.new("L", (SMALL_PITCH_PX * len(text), SMALL_PITCH_PX), 0)
    for k, character in enumerate(text):
        glyph = _glyphs(character, SMALL_PT)
        room = (SMALL_PITCH_PX - glyph.width, SMALL_PITCH_PX - glyph.height)
        ink.paste(glyph, (k * SMALL_PITCH_PX + room[0] // 2, room[1] // 2))
    return ink


def _glyphs(text: str, size_pt: int) -> Image.Image:
    font = ImageFont.load_default(size_pt)
    left, top, right, bottom = font.getbbox(text)
    ink = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(ink).text((-left, -top), text, font=font, fill=255)
    return ink
