"""A contact sheet: some questions of a data set with their pictures, on one page that needs no network.

Texts of the data are escaped, and the page's policy forbids every connection and every script.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from PIL import Image

from agentvision import __version__
from agentvision._whole_file import whole_file
from agentvision.compute import VisionSpec
from agentvision.errors import DataError, ImageError
from agentvision.geometry import Box, Size
from agentvision.images import open_image, render
from agentvision.types import ImageSource, Sample

THUMB_PX = 320
MAX_CHARS = 600
_TEMPLATE = "sheet.html.jinja"


@dataclass(frozen=True, slots=True)
class Picture:
    """`url` is a `data:` URL of the picture as it is first seen, brought to the sheet's size; empty when `problem` is not."""

    url: str
    size: Size
    full: Size
    first: Size
    tokens_full: int
    tokens_first: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """A question as the sheet shows it."""

    place: str
    name: str
    question: str
    answer: str
    needs_original: bool | None
    pictures: Sequence[Picture]


def write_sheet(
    sets: Mapping[str, Sequence[Sample]],
    path: Path,
    *,
    title: str,
    vision: VisionSpec,
    scale: float,
    n: int = 24,
    seed: int = 0,
) -> Path:
    """Write a sheet of `n` questions of each set, drawn by the seed (in the set's order). Raises `DataError`."""
    if n < 1:
        raise DataError(f"a sheet shows at least one question, not {n!r}")
    shown = {
        name: [_card(questions, i, vision, scale) for i in _drawn(len(questions), n, seed)]
        for name, questions in sets.items()
    }
    page = _page(
        title=title,
        version=__version__,
        sets=shown,
        totals={name: len(rows) for name, rows in sets.items()},
        scale=scale,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot write the sheet: {error}") from error
    return path


def _drawn(count: int, n: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(count), min(n, count)))


def _card(questions: Sequence[Sample], index: int, vision: VisionSpec, scale: float) -> Card:
    sample = questions[index]
    place = getattr(questions, "place", None)
    return Card(
        place=place(index) if place is not None else "",
        name=sample.id,
        question=_cut(sample.question),
        answer="–" if sample.answer is None else _cut(sample.answer),
        needs_original=sample.meta.get("needs_original"),
        pictures=[_picture(source, vision, scale) for source in sample.images],
    )


def _picture(source: ImageSource, vision: VisionSpec, scale: float) -> Picture:
    """A picture that cannot be shown is a card that says why."""
    try:
        image = open_image(source)
        full, first = vision.fit(image.size), vision.fit(image.size, scale=scale)
    except ImageError as error:
        return Picture("", (0, 0), (0, 0), (0, 0), 0, 0, problem=str(error))
    seen = render(image, Box(0, 0, *image.size), first)
    factor = THUMB_PX / max(seen.size)
    way = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS  # a small view shows the pixels it has
    thumb = seen.resize((max(1, round(seen.width * factor)), max(1, round(seen.height * factor))), way)
    buffer = io.BytesIO()
    thumb.save(buffer, "JPEG", quality=85)
    url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(url, image.size, full, first, vision.tokens(full), vision.tokens(first))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]} … ({len(text):,} characters)"


def _page(**values: object) -> str:
    from jinja2 import DictLoader, Environment, StrictUndefined

    source = (files("agentvision.data") / _TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        loader=DictLoader({_TEMPLATE: source}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(**values)
