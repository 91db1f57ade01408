"""`agentvision run` shows every turn, saves what the model saw, and says why there is no answer."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from PIL import Image

from agentvision.cli import main
from agentvision.cli._terminal import printable
from agentvision.data.glyphs import GlyphVQA
from agentvision.journal import read_trajectories
from agentvision.types import Sample

SCRIPTED = str(Path(__file__).parents[1] / "scripted.py")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(
        f"name: small\nmodel: {{path: none}}\npolicy: {{backend: '{SCRIPTED}:make'}}\n"
        "data: {source: glyphs, options: {columns: 5, rows: 3}}\n"
        "env: {first_view: {scale: 0.5}, tools: [resize_image]}\nrewards: [accuracy]\n"
    )
    return str(path)


@pytest.fixture
def hard() -> Sample:
    """A question that the scripted policy looks closer for."""
    return next(s for s in GlyphVQA(split="test", seed=0, size=20, columns=5, rows=3) if s.meta["needs_original"])


@pytest.fixture
def picture(tmp_path: Path, hard: Sample) -> str:
    path = tmp_path / "picture.png"
    image = hard.images[0]
    assert isinstance(image, Image.Image)
    image.save(path)
    return str(path)


def runs(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0


def test_turns_are_printed_and_views_saved(
    recipe: str, picture: str, hard: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    runs(["run", recipe, picture, hard.question, "--out", str(out)])
    printed = capsys.readouterr().out
    assert hard.question in printed
    assert "[view 1: first_view" in printed
    assert "[view 2: resize_image" in printed
    assert '<tool_call>{"name": "resize_image"' in printed
    assert f"answer: {hard.answer}" in printed
    (entry,) = read_trajectories(out)
    for view in entry.trajectory.views:
        with Image.open(out / f"view_{view.index}.png") as image:
            assert image.size == view.size


def test_the_saved_episode_can_be_reported(recipe: str, picture: str, hard: Sample, tmp_path: Path) -> None:
    out = tmp_path / "out"
    runs(["run", recipe, picture, hard.question, "--out", str(out)])
    runs(["report", str(out)])
    assert hard.question in (out / "report.html").read_text()


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str], *, code: int = 2) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_broken_model_is_one_line(recipe: str, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(["run", recipe, picture, "?", "--model", "broken"], capsys)
    assert "this model is broken" in error


def test_a_picture_that_is_none_is_one_line(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    assert "notes.txt" in error_of(["run", recipe, str(text), "?"], capsys)
    assert "missing.png" in error_of(["run", recipe, str(tmp_path / "missing.png"), "?"], capsys)


def test_a_picture_may_be_a_data_url_but_no_other_url(
    recipe: str, picture: str, hard: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"data:image/png;base64,{base64.b64encode(Path(picture).read_bytes()).decode()}"
    runs(["run", recipe, url, hard.question])
    assert f"answer: {hard.answer}" in capsys.readouterr().out
    error = error_of(["run", recipe, "https://example.org/a.png", "?"], capsys)
    assert (
        error
        == "error: 'https://example.org/a.png': of all URLs only data: is opened; download the picture and name its file\n"
    )


def test_what_is_there_is_not_overwritten(
    recipe: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "not overwritten" in error_of(["run", recipe, picture, "?", "--out", str(tmp_path)], capsys)


def test_a_report_of_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to report on" in error_of(["report", str(tmp_path)], capsys)


def test_a_report_of_less_than_nothing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--trajectories" in error_of(["report", str(tmp_path), "--trajectories", "-1"], capsys)


def test_a_models_text_cannot_steer_the_terminal() -> None:
    assert printable("\x1b[2Jé\n\t[red]x") == "�[2Jé\n\t[red]x"
