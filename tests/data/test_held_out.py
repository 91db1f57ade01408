"""Questions that are kept from training, and sources that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentvision.data import check_source, open_questions
from agentvision.data.files import files
from agentvision.errors import AgentVisionError, DataError, PluginError

from .cases import FILES, GOOD, jsonl, png, recipe_over


@pytest.mark.parametrize(
    "data",
    [
        {"path": "q.jsonl"},
        {"path": "q.jsonl", "eval": {"split": "validation"}},
        {"path": "q.jsonl", "eval": {"limit": 1}},
        {"path": "{split}.jsonl", "eval": {"split": "train"}},
        {"path": "saved"},
    ],
)
@pytest.mark.parametrize("use", ["train", "eval"])
def test_no_recipe_is_measured_on_the_rows_it_trains_on(
    data: dict[str, Any], use: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    for name in ("q.jsonl", "train.jsonl"):
        jsonl(tmp_path / name, GOOD)
    datasets.Dataset.from_list([{"question": "q", "answer": "a"}]).save_to_disk(tmp_path / "saved")
    recipe = recipe_over({"source": FILES, "fields": {"images": []}, **data})
    with pytest.raises(DataError, match=r"what data.train reads too.*\{split\}.*holdout"):
        open_questions(recipe, use)


def test_what_is_only_evaluated_needs_no_split(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", GOOD)
    recipe = recipe_over({"source": FILES, "path": str(path)}, trainer={"steps": 0})
    assert len(open_questions(recipe, "eval")) == 1


def test_a_share_is_held_out_by_picture_and_for_good(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "a", "image": f"{i % 100}.png"} for i in range(300)]
    for i in range(100):
        (tmp_path / f"{i}.png").write_bytes(png())
    path = jsonl(tmp_path / "q.jsonl", *rows)
    recipe = recipe_over({"source": FILES, "path": str(path), "options": {"holdout": 0.2}})
    train, held = open_questions(recipe, "train"), open_questions(recipe, "eval")
    assert len(train) + len(held) == 300 and 30 <= len(held) <= 90
    assert not {s.images for s in train} & {s.images for s in held}
    before = {s.question for s in held}
    jsonl(path, *reversed(rows), {"question": "new", "answer": "a", "image": "a.png"})
    assert {s.question for s in open_questions(recipe, "eval")} - {"new"} == before


@pytest.mark.parametrize("layout", ["saved", "splits"])
def test_embedded_pictures_are_held_out_by_their_bytes(tmp_path: Path, layout: str) -> None:
    import datasets

    rows = [
        {"question": f"q{i}", "answer": "a", "image": {"bytes": png(size=(6, 1 + i % 150)), "path": None}}
        for i in range(300)
    ]
    data = datasets.Dataset.from_list(rows)
    (data if layout == "saved" else datasets.DatasetDict({"train": data})).save_to_disk(tmp_path / "set")
    train, held = (files(path=str(tmp_path / "set"), split=split, holdout=0.3) for split in ("train", "test"))
    assert len(train) + len(held) == 300 and 40 <= len(held) <= 140
    assert not {s.images for s in train} & {s.images for s in held}
    assert {s.question for s in [*train, *held]} == {f"q{i}" for i in range(300)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"holdout": 0}, "holdout is 0; it is a share"),
        ({"holdout": 1.0}, "holdout is 1.0"),
        ({"holdout": "5%"}, "holdout is '5%'"),
        ({"holdout": 0.1, "split": "validation"}, "'train' and 'test', not 'validation'"),
    ],
)
def test_a_holdout_that_is_no_share(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    path = jsonl(tmp_path / "q.jsonl", GOOD)
    with pytest.raises(DataError, match=message):
        files(path=str(path), **more)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({"source": "glyfs"}, PluginError, "Did you mean 'glyphs'"),
        (
            {"source": "glyphs", "options": {"sise": 3}},
            DataError,
            "data.train: the source 'glyphs' has no option 'sise'",
        ),
        ({"source": "glyphs", "options": {"split": "x"}}, DataError, "has no option 'split'"),
        ({"source": "glyphs", "path": "x"}, DataError, "the source 'glyphs' reads no path, not 'x'"),
        ({"source": "glyphs", "train": {"split": "x"}}, DataError, "data.train: split is 'x'"),
        ({"source": FILES}, DataError, "cannot be opened: .*path"),
        (
            {"source": FILES, "path": "empty.jsonl"},
            DataError,
            "has no questions; 1 of 1 rows left out: not a line of JSON",
        ),
        ({"source": "./bad.py:number"}, DataError, "gave 'int', not a sequence"),
        ({"source": "./bad.py:texts"}, DataError, "gives 'str', not `Sample`"),
    ],
)
def test_sources_that_cannot_be_used_are_clear_errors(
    data: dict[str, Any], kind: type[AgentVisionError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("junk\n")
    (tmp_path / "bad.py").write_text("def number(split): return 3\ndef texts(**given): return ['a']\n")
    with pytest.raises(kind, match=message):
        open_questions(recipe_over(data), "train")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source": "glyfs"}, "data.train: there is no 'glyfs'"),
        ({"source": "glyphs", "options": {"sise": 3}}, "no option 'sise'. Did you mean 'size'"),
        ({"source": "files", "path": "gone.jsonl", "options": {"rot": "x"}}, "no option 'rot'. Did you mean 'root'"),
        ({"source": "files"}, "data.train: the source 'files' cannot be opened: .*'path'"),
        ({"source": "glyphs", "path": "x"}, "reads no path"),
    ],
)
def test_a_source_is_checked_without_being_opened(data: dict[str, Any], message: str) -> None:
    with pytest.raises(AgentVisionError, match=message):
        check_source(recipe_over(data), "train")


def test_a_source_in_order_is_not_opened_by_its_check() -> None:
    check_source(recipe_over({"source": "files", "path": "gone.jsonl", "options": {"holdout": 0.1}}), "eval")
