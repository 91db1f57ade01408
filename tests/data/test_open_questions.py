"""Questions as a recipe names them: splits, limits, bad rows, sources."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest

from agentvision.data import open_questions
from agentvision.errors import DataError

from .cases import FILES, GOOD, jsonl, recipe_over


def test_both_splits_inherit_what_they_leave_out(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", *[{"q": f"t{i}", "answer": "a", "image": "a.png"} for i in range(3)])
    jsonl(tmp_path / "test.jsonl", {"q": "e", "answer": "a", "image": "a.png"})
    data = {"source": FILES, "path": f"{tmp_path}/{{split}}.jsonl", "fields": {"question": "q"}, "train": {"limit": 2}}
    recipe = recipe_over(data)
    train = open_questions(recipe, "train")
    assert [s.question for s in train] == ["t0", "t1"]
    assert [s.question for s in train[-1:]] == ["t1"]
    assert [s.question for s in open_questions(recipe, "eval")] == ["e"]
    with pytest.raises(IndexError):
        train[2]


def test_a_split_of_another_source_inherits_neither_path_nor_options() -> None:
    data = {"source": FILES, "path": "gone.jsonl", "options": {"root": "x"}}
    recipe = recipe_over(data | {"eval": {"source": "glyphs", "options": {"size": 5}}})
    assert len(open_questions(recipe, "eval")) == 5


def test_seeds_reach_sources_that_generate() -> None:
    data = {"source": "glyphs", "options": {"size": 3}}
    questions = {
        seed: [s.question for s in open_questions(recipe_over(data, seed=seed, evaluation={"seed": 9}), use)]
        for use in ("train", "eval")
        for seed in (1, 2)
    }
    assert questions[1] == questions[2]  # the last two: evaluation has a seed of its own
    one, two = (open_questions(recipe_over(data, seed=seed), "train") for seed in (1, 2))
    assert [s.id for s in one] != [s.id for s in two]
    assert [s.id for s in one] == [s.id for s in open_questions(recipe_over(data), "train", seed=1)]


def test_the_warm_start_has_a_split_of_its_own() -> None:
    recipe = recipe_over({"source": "glyphs"}, warm_start={"steps": 1, "data": {"options": {"size": 4}}})
    assert len(open_questions(recipe, "warm_start")) == 4
    with pytest.raises(ValueError, match="no warm start"):
        open_questions(recipe_over({"source": "glyphs"}), "warm_start")


def test_a_limit_hides_nothing_else_that_a_source_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from agentvision.types import Sample\n"
        "class Mine(list):\n"
        "    def __init__(self, split): super().__init__(Sample(str(i), 'q') for i in range(9))\n"
        "    def demonstration(self, sample, *, look, seed): return [sample.id]\n"
    )
    questions: Any = open_questions(recipe_over({"source": "./mine.py:Mine", "train": {"limit": 4}}), "train")
    assert (len(questions), questions[-1].id) == (4, "3")
    assert questions.demonstration(questions[2], look=True, seed=0) == ["2"]
    assert len(copy.copy(questions)) == 4
    with pytest.raises(AttributeError):
        questions.nothing()


def test_rows_left_out_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jsonl(tmp_path / "train.jsonl", *[GOOD] * 19, "", "junk")
    with caplog.at_level(logging.WARNING):
        open_questions(recipe_over({"source": FILES, "path": f"{tmp_path}/{{split}}.jsonl"}), "train")
    assert caplog.messages == ["data.train: 1 of 20 rows left out: not a line of JSON: 1 (line 21)"]


def test_too_many_bad_rows_are_an_error_that_says_which(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", GOOD, "junk", GOOD | {"image": "gone.png"})
    data = {"source": FILES, "path": str(path), "eval": {"path": "other.jsonl"}}
    with pytest.raises(DataError) as caught:
        open_questions(recipe_over(data), "train")
    assert str(caught.value) == (
        "data.train: 2 of 3 rows left out: not a line of JSON: 1 (line 2); a picture's file is missing: 1 (line 3). "
        "That is more than data.max_bad_share=0.05 allows"
    )
    assert len(open_questions(recipe_over(data | {"max_bad_share": 0.7}), "train")) == 1
