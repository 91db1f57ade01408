"""The shipped recipe over a server, from the command line: evaluated, asked, checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from agentvision.build import vision_of
from agentvision.cli import main
from agentvision.data import open_questions
from agentvision.recipe import load_recipe
from agentvision.types import Sample

from ..glyph_server import GlyphModel
from ..openai_server import OpenAIServer

TINY = ["visionthink", "--profile", "tiny"]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    questions = open_questions(load_recipe("visionthink", profile="tiny"), "eval")
    return [questions[index] for index in range(8)]


@pytest.fixture(scope="module")
def model(samples: list[Sample]) -> GlyphModel:
    return GlyphModel(samples, vision=vision_of(load_recipe("visionthink", profile="tiny")))


def ends(arguments: list[str], code: int = 0) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == code


def policy(server: OpenAIServer, backend: str = "openai", **options: object) -> list[str]:
    model = "openai/glyph-reader" if backend == "litellm" else "glyph-reader"
    values = {"model": model, "api_base": server.url, **options}
    return [
        f"policy.backend={backend}",
        *(f"policy.options.{key}={json.dumps(value)}" for key, value in values.items()),
    ]


@pytest.mark.parametrize(("backend", "tools"), [("openai", "text"), ("openai", "native"), ("litellm", "native")])
def test_a_recipe_is_evaluated_over_a_server(
    backend: str, tools: str, model: GlyphModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with OpenAIServer(answer=model) as server:
        options = policy(server, backend, tools=tools, prices=[1000, 1000])
        ends(["eval", *TINY, "--n", "8", "--out", str(tmp_path / "out"), *options])
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["accuracy"], results["format"], results["call_rate_easy"], results["call_rate_hard"]) == (
        1,
        1,
        0,
        1,
    )
    assert results["model"].endswith("glyph-reader")
    assert results["usage"]["cost_usd"] == pytest.approx(0.013 * len(server.requests))
    assert f"US dollars{'':<30} {results['usage']['cost_usd']:>9.4f}" in printed
    assert f"tokens sent and received{'':<16} {10 * len(server.requests)}, {3 * len(server.requests)}" in printed
    ends(["report", str(tmp_path / "out")])


def test_a_question_is_asked_over_a_server_by_the_name_given_on_the_command_line(
    samples: list[Sample], model: GlyphModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = next(sample for sample in samples if sample.meta["needs_original"])
    assert isinstance(hard.images[0], Image.Image)
    hard.images[0].save(tmp_path / "picture.png")
    with OpenAIServer(answer=model) as server:
        ends(["run", *TINY, str(tmp_path / "picture.png"), hard.question, "--model", "another", *policy(server)])
    printed = capsys.readouterr().out
    assert f"answer: {hard.answer}" in printed and "[view 2: resize_image" in printed and "model · 3 tokens" in printed
    assert {request.body["model"] for request in server.requests} == {"another"}


def test_a_recipe_is_checked_and_a_training_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with OpenAIServer() as server:
        ends(["recipes", "check", *TINY, *policy(server)])
        assert "in order" in capsys.readouterr().out
        ends(["train", *TINY, "--out", str(tmp_path / "run"), *policy(server)], code=2)
    error = capsys.readouterr().err
    assert "'openai' cannot be trained" in error and "Traceback" not in error and not server.requests
