"""Questions onto disk, as `files` reads them: a JSON line each, their pictures beside it.

A picture that came encoded is written byte for byte, named by its content, so that questions about one picture share one
file. One that was drawn becomes a PNG; one that counts as another size is written at that size.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from agentvision._whole_file import whole_file
from agentvision.errors import DataError
from agentvision.images import FORMATS, encoded_bytes, open_image
from agentvision.jsonl import json_line
from agentvision.types import ImageSource, Resized, Sample

IMAGES = "images"
_OWN = ("id", "question", "images", "answer")
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "GIF": ".gif", "BMP": ".bmp"}
_JPEG = {"quality": 95, "subsampling": 0}


def write_samples(samples: Iterable[Sample], path: Path) -> int:
    """Write questions into a JSON-lines file that is not there yet, their pictures into `images/` beside it; their number.

    A sample's `meta` becomes columns, to be named in the recipe's `fields.meta`. The file is whole or not there. Raises
    `DataError` when it exists, cannot be written, or a sample holds what JSON cannot; `ImageError` for a bad picture.
    """
    if path.exists():
        raise DataError(f"{path} is there already and is not overwritten; choose another folder")
    count = 0
    try:
        (path.parent / IMAGES).mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part, part.open("wb") as file:
            for sample in samples:
                file.write(row_of(sample, path.parent))
                count += 1
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot write: {error}") from error
    return count


def row_of(sample: Sample, folder: Path) -> bytes:
    """A question as a line of JSON; its pictures are written into `folder/images` where they are not yet."""
    if taken := [key for key in sample.meta if key in _OWN]:
        raise DataError(f"the question {sample.id!r} has {taken[0]!r} in its meta, which is a column's name of its own")
    own = {
        "id": sample.id,
        "question": sample.question,
        "images": list(_images(sample, folder)),
        "answer": sample.answer,
    }
    try:
        return json_line({**own, **sample.meta})
    except (TypeError, ValueError) as error:
        raise DataError(f"the question {sample.id!r} holds what cannot be written as JSON: {error}") from error


def _images(sample: Sample, folder: Path) -> Iterator[str]:
    for source in sample.images:
        data, form = _encoded(source)
        name = f"{IMAGES}/{hashlib.sha256(data).hexdigest()[:32]}{_SUFFIXES[form]}"
        if not (folder / name).exists():
            with whole_file(folder / name) as part:
                part.write_bytes(data)
        yield name


def _encoded(source: ImageSource) -> tuple[bytes, str]:
    """A picture's bytes and their format. Raises `ImageError`."""
    image = open_image(source)
    inner = source
    while isinstance(inner, Resized):
        inner = inner.source
    if isinstance(inner, Image.Image):
        return _bytes(image, "PNG"), "PNG"
    data = encoded_bytes(inner)
    with Image.open(io.BytesIO(data), formats=FORMATS) as stored:
        form, size = str(stored.format), stored.size
    form = "JPEG" if form == "MPO" else form
    if not isinstance(source, Resized) or image.size == size:
        return data, form
    form = "JPEG" if form == "JPEG" else "PNG"
    return _bytes(image, form), form


def _bytes(image: Image.Image, form: str) -> bytes:
    options: dict[str, Any] = _JPEG if form == "JPEG" else {}
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
