"""An evaluation asks as training does, measures what came back, and never overwrites."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from agentvision import evaluate
from agentvision.compute import VisionSpec
from agentvision.data.glyphs import GlyphVQA
from agentvision.errors import DataError, RunError
from agentvision.evaluate import run
from agentvision.journal import load_image, read_trajectories
from agentvision.types import Sample

from ..scripted import ScriptedPolicy, glyph_recipe, ideal

PROMISED = [
    "n",
    "accuracy",
    "format",
    "call_rate",
    "call_rate_easy",
    "call_rate_hard",
    "visual_tokens_additive",
    "visual_tokens_replacement",
    "visual_tokens_full",
    "seconds",
    "accuracy_ci",
    "format_ci",
    "call_rate_ci",
    "call_rate_easy_ci",
    "call_rate_hard_ci",
    "interval",
    "stop",
    "invalid",
    "device",
    "versions",
    "recipe",
    "profile",
    "model",
    "seed",
]


@pytest.fixture
def samples() -> list[Sample]:
    return list(GlyphVQA(split="test", seed=0, size=20, columns=5, rows=3))


def test_an_ideal_policy_is_measured_as_one(tmp_path: Path, samples: list[Sample]) -> None:
    policy = ScriptedPolicy(samples)
    result = evaluate(glyph_recipe(), policy=policy, out=tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert result.path == tmp_path / "results.json"
    assert written == dict(result.metrics)
    assert set(PROMISED) <= set(written)
    assert (written["n"], written["accuracy"], written["format"]) == (20, 1, 1)
    assert (written["call_rate_easy"], written["call_rate_hard"]) == (0, 1)
    assert written["visual_tokens_additive"] < written["visual_tokens_full"]
    assert written["stop"] == {"answered": 20}
    assert not policy.closed, "a policy that was passed in belongs to the caller"


def test_every_trajectory_is_in_the_journal_with_its_images_in_the_questions_order(
    tmp_path: Path, samples: list[Sample]
) -> None:
    result = evaluate(glyph_recipe(), policy=ScriptedPolicy(samples), out=tmp_path)
    entries = list(read_trajectories(tmp_path / "evaluation"))
    assert [entry.trajectory for entry in entries] == list(result.trajectories)
    assert [entry.trajectory.sample.id for entry in entries] == [sample.id for sample in samples]
    for view in entries[0].trajectory.views:
        assert load_image(tmp_path / "evaluation", view.image).size == view.size


def test_questions_see_the_resolution_and_the_temperature_of_the_recipe(samples: list[Sample]) -> None:
    policy = ScriptedPolicy(samples)
    evaluate(glyph_recipe(sampling={"temperature": 1.0}, evaluation={"n": 3, "temperature": 0.0}), policy=policy)
    first = policy.requests[0]
    assert first.views[0].original_size == (160, 96)
    assert first.views[0].size == VisionSpec().fit((80, 48))
    assert first.sampling.temperature == 0
    assert [tool["function"]["name"] for tool in first.tools] == ["resize_image"]  # type: ignore[index]


def test_n_and_seed_choose_the_questions(samples: list[Sample]) -> None:
    ids = [t.sample.id for t in evaluate(glyph_recipe(), policy=ScriptedPolicy(samples), n=4).trajectories]
    assert ids == [sample.id for sample in samples[:4]]
    other = list(GlyphVQA(split="test", seed=7, size=4, columns=5, rows=3))
    result = evaluate(glyph_recipe(), policy=ScriptedPolicy(other), n=4, seed=7)
    assert [t.sample.id for t in result.trajectories] == [sample.id for sample in other]
    assert result.metrics["seed"] == 7


def test_blocks_do_not_change_the_result(
    tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(glyph_recipe(), policy=ScriptedPolicy(samples))
    monkeypatch.setattr(run, "_BLOCK", 3)
    done: list[tuple[int, int]] = []
    cut = evaluate(glyph_recipe(), policy=ScriptedPolicy(samples), on_done=lambda *at: done.append(at))
    for name in ("accuracy", "call_rate", "visual_tokens_additive", "stop"):
        assert cut.metrics[name] == whole.metrics[name]
    assert done == [(k, 20) for k in range(1, 21)]


def test_questions_that_share_an_id_are_all_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = GlyphVQA(split="test", seed=0, size=1, columns=5, rows=3)[0]
    monkeypatch.setattr(run, "open_questions", lambda recipe, use, seed: [sample] * 5)
    assert evaluate(glyph_recipe(), policy=ScriptedPolicy([sample])).metrics["n"] == 5


def test_the_format_is_measured_where_it_earns_nothing(samples: list[Sample]) -> None:
    result = evaluate(glyph_recipe(rewards=[{"accuracy": {}}]), policy=ScriptedPolicy(samples))
    assert result.metrics["format"] == 1
    assert {t.reward for t in result.trajectories} == {1.0}


def test_results_are_never_overwritten_and_a_broken_off_evaluation_is_done_again(
    tmp_path: Path, samples: list[Sample]
) -> None:
    def dies(sample: Sample, views: int) -> str | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(glyph_recipe(), policy=ScriptedPolicy(samples, dies), out=tmp_path)
    assert not (tmp_path / "results.json").exists()
    evaluate(glyph_recipe(), policy=ScriptedPolicy(samples), out=tmp_path)
    assert len(list(read_trajectories(tmp_path / "evaluation"))) == 20
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(RunError, match="not overwritten"):
        evaluate(glyph_recipe(), policy=ScriptedPolicy(samples), out=tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before


def test_an_evaluation_in_which_nothing_ran_is_an_error(tmp_path: Path, samples: list[Sample]) -> None:
    def fails(sample: Sample, views: int) -> str | None:
        raise ValueError("no such layer")

    with pytest.raises(RunError, match=r"all 20 episodes.*policy_error.*no such layer"):
        evaluate(glyph_recipe(), policy=ScriptedPolicy(samples, fails), out=tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_episodes_that_broke_are_invalid_and_not_wrong(samples: list[Sample]) -> None:
    def sometimes(sample: Sample, views: int) -> str | None:
        if sample is samples[0]:
            raise ValueError("once")
        return ideal(sample, views)

    metrics = evaluate(glyph_recipe(), policy=ScriptedPolicy(samples, sometimes)).metrics
    assert metrics["accuracy"] == 1
    assert metrics["invalid"] == 1
    assert metrics["stop"]["policy_error"] == 1


@pytest.mark.parametrize("n", [0, -1])
def test_an_evaluation_without_questions_is_refused(n: int) -> None:
    with pytest.raises(RunError, match="at least one question"):
        evaluate(glyph_recipe(), policy=ScriptedPolicy([]), n=n)


def test_a_data_set_that_cannot_be_opened_is_a_clear_error_before_anything_is_written(tmp_path: Path) -> None:
    recipe = glyph_recipe(data={"source": "glyphs", "options": {"alphabet": "?"}})
    with pytest.raises(DataError, match="alphabet"):
        evaluate(recipe, policy=ScriptedPolicy([]), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_also_works_inside_an_event_loop(samples: list[Sample]) -> None:
    async def inside() -> float | None:
        return evaluate(glyph_recipe(), policy=ScriptedPolicy(samples), n=2).accuracy

    assert asyncio.run(inside()) == 1


@pytest.mark.usefixtures("some_bad")
@pytest.mark.parametrize(("bad", "stops"), [(1, False), (2, True)])
def test_bad_images_leave_the_numbers_and_are_capped(bad: int, stops: bool, tmp_path: Path) -> None:
    questions = list(GlyphVQA(split="test", seed=0, size=20, columns=5, rows=3))
    recipe = glyph_recipe(data={"source": "./some_bad.py:questions", "options": {"bad": bad}})
    if stops:
        with pytest.raises(DataError, match=r"images of 2 of 20 questions.*max_bad_share=0.05.*not a readable picture"):
            evaluate(recipe, policy=ScriptedPolicy(questions), out=tmp_path / "out")
        assert not (tmp_path / "out" / "results.json").exists()
        return
    metrics = evaluate(recipe, policy=ScriptedPolicy(questions)).metrics
    assert (metrics["accuracy"], metrics["invalid"], metrics["stop"]["bad_image"]) == (1, 1, 1)


@pytest.fixture
def some_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data source whose first pictures cannot be read."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "some_bad.py").write_text(
        "from dataclasses import replace\n"
        "from agentvision.data.glyphs import GlyphVQA\n"
        "def questions(split, bad):\n"
        "    rows = list(GlyphVQA(split='test', seed=0, size=20, columns=5, rows=3))\n"
        "    return [replace(s, images=(b'junk',)) if i < bad else s for i, s in enumerate(rows)]\n"
    )
    monkeypatch.chdir(tmp_path / "plugins")
