"""GlyphVQA: a seeded, synthetic task in which the question decides whether the first view is enough.

A picture holds cards with a short random code in large or small type, and shapes (see `scene`). A question asks for a code
or one of its characters, naming the card by colour or place and never its size, or for a shape, a colour or a count. Only
small type needs the original; which cards carry it has to be seen. Codes are random, so guessing is hopeless unless
`alphabet` and `code_length` are made small on purpose (`alphabet="AB", code_length=1, hard_share=0.1`: questions that are
seldom hard and whose answers can be guessed).

Sample `i` is a function of (seed, split, i) alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agentvision.data import scene as world
from agentvision.data.questions import Question, ask_about_shapes, ask_about_writing
from agentvision.data.scene import CARD_PX, SMALL_PITCH_PX, Scene, Split
from agentvision.errors import DataError
from agentvision.types import Sample

ALPHABET = "0123456789"
"""Characters that cannot be taken for one another, and of which two fit side by side on a card."""
MAX_CODE_LENGTH = 2
LARGE_PT, SMALL_PT = 20, 7
LOOK = '<tool_call>{"name": "resize_image", "arguments": {}}</tool_call>'
"""The call that asks for the original."""

_SIZES = {"train": 100_000, "test": 500}
PHRASES = {
    "code": "What does {name} say?",
    "first": "What is the first character on {name}?",
    "last": "What is the last character on {name}?",
}


class GlyphVQA:
    """The task as a sequence of `Sample`; holds no state but its settings.

    `hard_share` of the questions need the original. `size` defaults to 100,000 for `train` and 500 for `test`. Images
    are (32·columns, 32·rows) pixels. `meta` of a sample: `kind`, `needs_original`, `sees` (what a look at the first view
    tells) and `guesses` (characters and length that a guess would be drawn from, or the words).
    """

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
        if split not in get_args(Split):
            raise DataError(f"split is {split!r}; it must be 'train' or 'test'")
        if not 0 <= hard_share <= 1:
            raise DataError(f"hard_share is {hard_share!r}; it must lie between 0 and 1")
        if stray := sorted(set(alphabet) - set(ALPHABET)):
            raise DataError(f"alphabet {alphabet!r} holds {''.join(stray)!r}; it may use characters of {ALPHABET!r}")
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise DataError(f"alphabet {alphabet!r} must name at least one character, and each once")
        if not 1 <= code_length <= MAX_CODE_LENGTH:
            raise DataError(
                f"code_length is {code_length!r}; large type has room for 1 to {MAX_CODE_LENGTH} characters"
            )
        world.check_grid(columns, rows)
        self.split: Split = split
        self.seed, self.size = seed, _SIZES[split] if size is None else size
        self.hard_share, self.alphabet, self.code_length = hard_share, alphabet, code_length
        self.columns, self.rows = columns, rows

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.size:
            raise IndexError(f"GlyphVQA has {self.size} samples; there is no sample {i}")
        scene, rng = self._begin(i)
        asked = self._ask(scene, rng)
        image = world.draw(scene, rng, stamp=type_stamp)
        return Sample(f"glyphs-{self.split}-{self.seed}-{i}", asked.text, (image,), asked.answer, asked.meta)

    def scene(self, i: int) -> Scene:
        """What the picture of sample `i` holds; for measuring, and for teaching the vision tower to read."""
        return self._begin(i)[0]

    def _begin(self, i: int) -> tuple[Scene, np.random.Generator]:
        """The scene of sample `i`, and the generator that its question and drawing go on with."""
        rng = np.random.default_rng([self.seed, get_args(Split).index(self.split), i])
        scene = world.compose(rng, split=self.split, text=self._code, columns=self.columns, rows=self.rows)
        return scene, rng

    def _code(self, rng: np.random.Generator) -> str:
        return "".join(self.alphabet[k] for k in rng.integers(len(self.alphabet), size=self.code_length))

    def _ask(self, scene: Scene, rng: np.random.Generator) -> Question:
        hard = bool(rng.random() < self.hard_share)
        if not hard and rng.random() < 0.5:
            return ask_about_shapes(scene, rng)
        return ask_about_writing(scene, rng, hard=hard, phrases=PHRASES, characters=self.alphabet, noun="type")


def demonstration(sample: Sample, *, look: bool, seed: int = 0) -> list[str]:
    """The assistant's turns for a supervised warm start: a tool call and then the answer, or one direct turn.

    The thoughts say what is seen and not what to do. A direct answer to a question that needs the original cannot be
    read, so it is a guess drawn at random from what an answer may be; the true answer has no part in it.
    """
    sees = sample.meta["sees"]
    if look:
        clear = sees.replace("small", "clear").replace("large", "clear")
        return [f"<think>{sees}</think>\n{LOOK}", f"<think>{clear}</think>\n<answer>{sample.answer}</answer>"]
    answer = sample.answer
    if sample.meta["needs_original"]:
        rng = np.random.default_rng([seed, *sample.id.encode()])
        guesses = sample.meta["guesses"]
        drawn = rng.integers(len(guesses["characters"]), size=guesses["length"])
        answer = "".join(guesses["characters"][k] for k in drawn)
    return [f"<think>{sees}</think>\n<answer>{answer}</answer>"]


def type_stamp(text: str, large: bool, rng: np.random.Generator) -> Image.Image:
    """Ink of a text in large or small type (a `scene.Stamp`); the random generator is not needed."""
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
