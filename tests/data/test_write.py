"""Questions on disk read back equal, and a picture is stored once."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agentvision.data.files import files
from agentvision.data.glyphs import GlyphVQA
from agentvision.data.write import write_samples
from agentvision.errors import DataError, ImageError
from agentvision.images import image_hash, open_image
from agentvision.recipe.dataset import Fields
from agentvision.types import Resized, Sample


def encoded(form: str, size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


def test_glyphs_read_back_equal(tmp_path: Path) -> None:
    questions = list(GlyphVQA(split="test", seed=3, size=12))
    assert write_samples(questions, tmp_path / "test.jsonl") == 12
    columns = tuple(dict.fromkeys(key for sample in questions for key in sample.meta))
    back = files(path=f"{tmp_path}/{{split}}.jsonl", split="test", fields=Fields(meta=columns))
    assert [(s.id, s.question, s.answer, s.meta) for s in back] == [
        (s.id, s.question, s.answer, s.meta) for s in questions
    ]
    assert [image_hash(open_image(s.images[0])) for s in back] == [image_hash(s.images[0]) for s in questions]


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_encoded_picture_is_kept_byte_for_byte_and_once(tmp_path: Path, form: str) -> None:
    data = encoded(form)
    (tmp_path / "source").write_bytes(data)
    samples = [Sample("a", "q", (data, tmp_path / "source"), "x"), Sample("b", "q", (data,), None)]
    write_samples(samples, tmp_path / "out" / "q.jsonl")
    (stored,) = (tmp_path / "out" / "images").iterdir()
    assert stored.read_bytes() == data
    one, two = files(path=str(tmp_path / "out" / "q.jsonl"), fields=Fields(answer=()))
    assert one.images == (stored, stored) and two.images == (stored,)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_resized_picture_is_written_at_its_size(tmp_path: Path, form: str) -> None:
    data = encoded(form)
    samples = [Sample("a", "q", (Resized(data, (20, 10)),), "x"), Sample("b", "q", (Resized(data, (40, 30)),), "x")]
    write_samples(samples, tmp_path / "q.jsonl")
    small, same = (sample.images[0] for sample in files(path=str(tmp_path / "q.jsonl")))
    assert open_image(small).size == (20, 10)
    assert same.read_bytes() == data
    assert Image.open(small).format == form


def test_nothing_is_overwritten_and_no_half_file_is_left(tmp_path: Path) -> None:
    good = Sample("a", "q", (encoded("PNG"),), "x")
    with pytest.raises(ImageError):
        write_samples([good, Sample("b", "q", (b"junk",), "x")], tmp_path / "q.jsonl")
    assert not (tmp_path / "q.jsonl").exists()
    write_samples([good], tmp_path / "q.jsonl")
    with pytest.raises(DataError, match="is not overwritten"):
        write_samples([good], tmp_path / "q.jsonl")


@pytest.mark.parametrize("meta", [{"answer": 1}, {"x": float("nan")}, {"x": b"bytes"}])
def test_what_json_cannot_hold_is_a_clear_error(tmp_path: Path, meta: dict) -> None:
    with pytest.raises(DataError, match="the question 'a' h"):
        write_samples([Sample("a", "q", meta=meta)], tmp_path / "q.jsonl")
