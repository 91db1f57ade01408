"""Checking a data set: what is bad, what stands there twice, what is in two splits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from agentvision.build import vision_of
from agentvision.cli._target import open_target
from agentvision.compute import VisionSpec
from agentvision.data.check import Report, check_sets, lines
from agentvision.data.glyphs import GlyphVQA
from agentvision.errors import DataError
from agentvision.recipe import load_recipe


def png(path: Path, size: tuple[int, int] = (56, 28), colour: str = "red") -> str:
    Image.new("RGB", size, colour).save(path)
    return path.name


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return str(path)


def checked(target: str, *overrides: str, **more: Any) -> Report:
    found = open_target(target, overrides=overrides)
    return check_sets(found.sets, vision=vision_of(found.recipe), scale=0.5, **{"context_tokens": 8192, **more})


def test_a_set_in_order_is_told_in_numbers(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "answer": "a", "image": png(tmp_path / "a.png", (560, 280))},
        {"question": "q", "answer": "a", "images": [png(tmp_path / "b.png", (280, 560)), "a.png"]},
    ]
    report = checked(jsonl(tmp_path / "q.jsonl", rows))
    one = report.sets[""]
    assert (report.errors, report.warnings, one.rows, one.questions, one.images) == ([], [], 2, 2, 3)
    assert one.mapping == {"question": "question", "images": "images, image", "answer": "answer"}
    assert (one.width.least, one.width.most, one.aspect.most) == (280, 560, 2)
    assert (one.tokens_full.least, one.tokens_full.most) == (200, 400)
    assert (one.tokens_first.least, one.tokens_first.most) == (50, 100)
    assert any("200 to 400, median 300" in line for line in lines(report))


@pytest.mark.parametrize("decode", [True, False])
def test_what_is_bad_is_an_error_with_its_line(tmp_path: Path, decode: bool) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(whole, "PNG")
    (tmp_path / "short.png").write_bytes(whole.getvalue()[:2000])
    good = {"question": "q", "answer": "a", "image": png(tmp_path / "a.png")}
    rows = [
        good,
        "not json",
        good | {"image": "junk.png"},
        good | {"image": "short.png"},
        good | {"image": png(tmp_path / "thin.png", (402, 2))},
        good | {"image": "gone.png"},
    ]
    report = checked(jsonl(tmp_path / "q.jsonl", rows), decode=decode)
    told = "\n".join(report.errors)
    for place, reason in {
        "line 2": "not a line of JSON",
        "line 3": "not a readable picture",
        "line 5": "one side may be at most",
        "line 6": "a picture's file is missing",
    }.items():
        (line,) = (line for line in report.errors if reason in line)
        assert place in line
    assert ("damaged or cut short" in told and "line 4" in told) == decode
    assert report.sets[""].checked == 4


def test_the_same_question_about_the_same_pixels_is_a_duplicate(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "a.bmp")
    rows = [
        {"question": "Which one?", "answer": "a", "image": "a.png"},
        {"question": "Which  one? ", "answer": "b", "image": "a.bmp"},
        {"question": "Another?", "answer": "a", "image": "a.png"},
    ]
    path = jsonl(tmp_path / "q.jsonl", rows)
    report = checked(path)
    assert report.sets[""].duplicates == [("line 2", "line 1")]
    assert report.errors == [] and "1 questions stand there again" in report.warnings[0]
    assert checked(path, decode=False).sets[""].duplicates == []  # by their bytes they differ


def test_leaks_between_splits_are_errors(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "lime")):
        png(tmp_path / f"{name}.png", colour=colour)
    ask = lambda image, question="q": {"question": question, "answer": "a", "image": f"{image}.png"}  # noqa: E731
    jsonl(tmp_path / "train.jsonl", [ask("a"), ask("b")])
    jsonl(tmp_path / "test.jsonl", [ask("c"), ask("a"), ask("b", "other"), ask("c", "other")])
    report = checked(f"{tmp_path}/{{split}}.jsonl")
    assert [(leak.what, leak.sets, leak.count, leak.examples) for leak in report.leaks] == [
        ("the same question", ("test", "train"), 1, [("line 2", "line 1")]),
        ("another question about the same picture", ("test", "train"), 1, [("line 3", "line 2")]),
    ]
    assert len(report.errors) == 2


def test_a_holdout_is_checked_as_the_splits_it_makes(tmp_path: Path) -> None:
    rows = [
        {"question": str(i), "answer": "a", "image": png(tmp_path / f"{i}.png", colour=f"#0000{i:02x}")}
        for i in range(40)
    ]
    path = jsonl(tmp_path / "q.jsonl", [*rows, *rows])
    report = checked(path, "data.options.holdout=0.3")
    assert sum(one.questions for one in report.sets.values()) == 80
    assert report.sets["test"].questions > 0 and report.errors == []


def test_pictures_that_fill_the_context_are_a_warning(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", [{"question": "q", "answer": "a", "image": png(tmp_path / "a.png", (560, 560))}])
    assert "fill sampling.context_tokens" in checked(path, context_tokens=499).warnings[0]
    assert checked(path, context_tokens=500).warnings == []


def test_visionthinks_schema_is_found_and_its_sizes_counted(tmp_path: Path) -> None:
    import datasets

    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "PNG")
    row = {
        "problem": "q",
        "images": {"bytes": buffer.getvalue(), "path": None},
        "solution": "a",
        "info": {"tgt_width": 280, "tgt_height": 280},
    }
    datasets.DatasetDict({name: datasets.Dataset.from_list([row]) for name in ("a", "b")}).save_to_disk(
        tmp_path / "set"
    )
    found = open_target(str(tmp_path / "set"))
    assert found.recipe.data.source == "visionthink"
    report = checked(str(tmp_path / "set"))
    assert (report.sets["a"].width.most, report.sets["a"].tokens_full.most, report.sets["a"].tokens_first.most) == (
        560,
        400,
        100,
    )
    assert report.leaks[0].sets == ("a", "b")


def test_any_source_can_be_checked() -> None:
    questions = GlyphVQA(split="test", seed=0, size=30)
    report = check_sets({"": questions}, vision=VisionSpec(8, 2), scale=0.5, context_tokens=99, limit=20)
    assert (report.errors, report.sets[""].questions, report.sets[""].checked) == ([], 30, 20)


def test_the_models_own_rule_of_sizes_is_used() -> None:
    tiny = load_recipe("visionthink", profile="tiny")
    assert vision_of(tiny) == VisionSpec(patch=8, merge=2, min_pixels=256, max_pixels=1048576)
    assert vision_of(load_recipe("visionthink")) == VisionSpec(max_pixels=4194304)


@pytest.mark.parametrize("target", ["gone.jsonl", "gone/{split}.jsonl"])
def test_what_is_not_there_is_a_clear_error(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no file or folder"):
        open_target(target)
