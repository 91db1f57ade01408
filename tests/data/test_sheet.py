"""The contact sheet: what it shows, and that nothing of the data becomes markup."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from agentvision.compute import VisionSpec
from agentvision.data.glyphs import GlyphVQA
from agentvision.data.sheet import THUMB_PX, write_sheet
from agentvision.errors import DataError
from agentvision.types import Sample

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too' <img src=x onerror=y>"


class Page(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def sheet(path: Path, sets: dict[str, list[Sample]] | dict[str, GlyphVQA], **more: object) -> Page:
    settings = {"title": "A set", "vision": VisionSpec(8, 2, 256), "scale": 0.5, **more}
    return Page(write_sheet(sets, path / "sheet.html", **settings).read_text())


def test_a_question_is_shown_as_the_model_first_sees_it(tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 32), "red")
    page = sheet(tmp_path, {"train": [Sample("s1", "What colour?", (picture,), "red", {"needs_original": True})]})
    for words in (
        "What colour?",
        "red",
        "s1",
        "64 × 32 · 2 tokens at first (32 × 16), 8 in full (64 × 32)",
        "needs the original",
    ):
        assert words in page.text
    ((_, shown),) = [tag for tag in page.tags if tag[0] == "img"]
    url = str(shown["src"])
    assert url.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (THUMB_PX, THUMB_PX // 2)


def test_nothing_of_the_data_becomes_markup(tmp_path: Path) -> None:
    sample = Sample(HOSTILE, HOSTILE, (Image.new("RGB", (32, 32)),), HOSTILE)
    page = sheet(tmp_path, {HOSTILE: [sample]}, title=HOSTILE)
    assert {tag for tag, _ in page.tags} == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "span", "div", "article", "figure", "img",
        "figcaption",
    }  # fmt: skip
    assert page.text.count(HOSTILE) >= 4
    (policy,) = [str(a["content"]) for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in policy and "script" not in policy
    addresses = [a[key] for _, a in page.tags for key in ("src", "href") if key in a]
    assert all(str(address).startswith("data:image/jpeg") for address in addresses)


def test_a_picture_that_cannot_be_shown_says_why(tmp_path: Path) -> None:
    page = sheet(tmp_path, {"": [Sample("a", "q", (b"junk",)), Sample("b", "q", (Image.new("RGB", (900, 2)),))]})
    assert "is not a readable picture" in page.text and "one side may be at most" in page.text
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_the_seed_draws_the_questions(tmp_path: Path) -> None:
    questions = {"": GlyphVQA(split="test", size=50)}
    one, same, other = (
        re.findall(r"glyphs-test-0-\d+", sheet(tmp_path, questions, n=6, seed=s).text) for s in (1, 1, 2)
    )
    assert one == same != other
    assert len(one) == 6 and one == sorted(one, key=lambda name: int(name.rpartition("-")[2]))


def test_texts_too_long_are_cut(tmp_path: Path) -> None:
    page = sheet(tmp_path, {"": [Sample("a", "x" * 5000, answer="b")]})
    assert "(5,000 characters)" in page.text and "x" * 601 not in page.text


def test_a_sheet_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one question"):
        sheet(tmp_path, {"": [Sample("a", "q")]}, n=0)
