"""The halves of a data set: the paper's rule, on counts, on a scripted policy and on the tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentvision.compute import VisionSpec
from agentvision.data import split as module
from agentvision.data.files import files
from agentvision.data.glyphs import GlyphVQA
from agentvision.data.split import Counts, half_of, split_questions
from agentvision.errors import DataError, RunError
from agentvision.policy import Completion, Request
from agentvision.recipe import load_recipe
from agentvision.recipe.dataset import Fields
from agentvision.types import Sample

from ..scripted import ScriptedPolicy, glyph_recipe

QUESTIONS = GlyphVQA(split="train", seed=0, size=24, columns=7, rows=5)


@pytest.mark.parametrize(
    ("low", "high", "half"),
    [
        (8, 8, "easy"),
        (7, 8, None),
        (8, 7, None),
        (2, 8, "hard"),
        (0, 6, "hard"),
        (0, 5, None),
        (3, 8, None),
        (8, 0, None),
        (0, 0, None),
    ],
)
def test_the_papers_rule(low: int, high: int, half: str | None) -> None:
    assert half_of(Counts(0, low, high), n=8, margin=6) == half
    assert half_of(Counts(0, low, high, invalid=1), n=8, margin=6) is None
    assert half_of(Counts(0, low, high, bad_image=True), n=8, margin=6) is None


class Reader(ScriptedPolicy):
    """Reads large writing always, and small writing when it sees the whole picture."""

    def __init__(self, questions: list[Sample], *, die_after: int | None = None) -> None:
        super().__init__(questions)
        self.die_after = die_after

    async def complete(self, request: Request) -> Completion:
        if self.die_after is not None and len(self.requests) >= self.die_after:
            raise KeyboardInterrupt
        self.requests.append(request)
        (view,) = request.views
        sample = self._samples[view.original]
        whole = view.tokens == VisionSpec().tokens(view.original_size)
        return Completion(
            f"<think>.</think><answer>{sample.answer if whole or not sample.meta['needs_original'] else '?'}</answer>"
        )


def labels(folder: Path) -> dict[str, bool]:
    rows = files(path=str(folder / "train.jsonl"), fields=Fields(meta=("needs_original", "right_low", "right_high")))
    assert all(s.meta["right_high"] == 2 and s.meta["right_low"] == 2 * (not s.meta["needs_original"]) for s in rows)
    return {sample.id: sample.meta["needs_original"] for sample in rows}


def test_a_policy_that_reads_recovers_what_the_generator_knew(tmp_path: Path) -> None:
    questions = list(QUESTIONS)
    seen: list[tuple[int, int]] = []
    report = split_questions(
        glyph_recipe(), questions, tmp_path, n=2, policy=Reader(questions), on_done=lambda *at: seen.append(at)
    )
    truth = {s.id: s.meta["needs_original"] for s in questions}
    assert labels(tmp_path) == truth
    hard = sum(truth.values())
    assert (report.easy, report.hard, report.written, report.dropped) == (24 - hard, hard, 24, {})
    assert report.labels == {"easy as easy": 24 - hard, "hard as hard": hard}
    assert json.loads((tmp_path / "split.json").read_text()) == report.as_json()
    assert seen[-1] == (24, 24)
    with pytest.raises(DataError, match="is not overwritten"):
        split_questions(glyph_recipe(), questions, tmp_path, n=2, policy=Reader(questions))


def test_a_split_that_was_killed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 4)
    questions = list(QUESTIONS)
    with pytest.raises(KeyboardInterrupt):
        split_questions(glyph_recipe(), questions, tmp_path, n=2, policy=Reader(questions, die_after=40))
    assert not (tmp_path / "train.jsonl").exists()
    with (tmp_path / "counts.jsonl").open("ab") as file:
        file.write(b'{"index": 23, "lo')  # the line it was writing
    again = Reader(questions)
    split_questions(glyph_recipe(), questions, tmp_path, n=2, policy=again)
    assert len(again.requests) == 24 * 4 - 2 * 16  # two blocks of four questions were done, each asked four times
    assert labels(tmp_path) == {s.id: s.meta["needs_original"] for s in questions}


def test_a_folder_begun_otherwise_is_refused(tmp_path: Path) -> None:
    questions = list(QUESTIONS)
    with pytest.raises(KeyboardInterrupt):
        split_questions(glyph_recipe(), questions, tmp_path, n=2, policy=Reader(questions, die_after=0))
    with pytest.raises(DataError, match=r"was begun with n=2 \(now 4\)"):
        split_questions(glyph_recipe(), questions, tmp_path, n=4, policy=Reader(questions))


def test_halves_can_be_made_equal(tmp_path: Path) -> None:
    questions = [s for s in QUESTIONS if s.meta["needs_original"]][:3]
    questions += [s for s in QUESTIONS if not s.meta["needs_original"]][:7]
    split_questions(glyph_recipe(), questions, tmp_path, n=2, policy=Reader(questions), balance=True)
    assert sorted(labels(tmp_path).values()) == [False] * 3 + [True] * 3


def test_bad_pictures_and_answers_without_a_verdict_are_dropped_and_counted(tmp_path: Path) -> None:
    from dataclasses import replace

    questions = list(QUESTIONS)
    questions[5] = replace(questions[5], images=(b"junk",))
    questions[6] = replace(questions[6], answer=None)
    known = [s for i, s in enumerate(questions) if i != 5]
    report = split_questions(glyph_recipe(), questions, tmp_path, n=2, policy=Reader(known))
    assert report.dropped == {"the picture cannot be read": 1, "an answer has no verdict": 1}


def test_what_cannot_be_split_is_a_clear_error(tmp_path: Path) -> None:
    questions = list(QUESTIONS)
    whole = glyph_recipe(env={"first_view": {"scale": 1.0}})
    blind = glyph_recipe(rewards=["format"])
    for bad, more, message in (
        (whole, {}, "first_view.scale is 1"),
        (blind, {}, "judges correctness"),
        (glyph_recipe(), {"margin": 9}, "the margin is 1 to 8"),
        (glyph_recipe(), {"n": 0}, "at least once"),
    ):
        with pytest.raises(DataError, match=message):
            split_questions(bad, questions, tmp_path / "out", policy=Reader(questions), **more)
    assert not (tmp_path / "out").exists()


def test_a_policy_that_fails_is_no_wrong_answer(tmp_path: Path) -> None:
    class Gone(Reader):
        async def complete(self, request: Request) -> Completion:
            raise ConnectionError("engine gone")

    with pytest.raises(RunError, match=r"answers of a block failed.*engine gone"):
        split_questions(glyph_recipe(), list(QUESTIONS), tmp_path, n=2, policy=Gone(list(QUESTIONS)))


def test_the_tiny_model_recovers_the_generators_labels(tmp_path: Path) -> None:
    tiny = load_recipe("visionthink", profile="tiny")
    report = split_questions(tiny, GlyphVQA(split="train", seed=0), tmp_path, n=8, limit=12)
    agreed = report.labels.get("easy as easy", 0) + report.labels.get("hard as hard", 0)
    assert report.easy + report.hard == agreed >= 8
    assert report.easy and report.hard
