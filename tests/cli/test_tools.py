"""`agentvision tools` on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from agentvision import plugins
from agentvision.cli import main

OWN = '''
from agentvision.tool import NewView, ToolContext, ToolResult, tool

@tool
def halves(ctx: ToolContext) -> ToolResult:
    """Show it twice."""
    return ToolResult("Here.", (ctx.look(1, scale=0.5), ctx.look(1, scale=0.25)))

@tool
def crash(ctx: ToolContext) -> ToolResult:
    """Crash."""
    raise RuntimeError("out of luck")

@tool
def wordy(ctx: ToolContext) -> ToolResult:
    """Fail at length."""
    raise RuntimeError("out of luck\\n  with \\x1b[2J\\nmany lines")

@tool
def painter(ctx: ToolContext) -> str:
    """Paint the terminal."""
    return "\\x1b]0;mine\\x07red"

def forgotten(ctx: ToolContext) -> ToolResult:
    """Its decorator is missing."""
    raise AssertionError("called")

class Set:
    @tool
    def one(self, ctx: ToolContext) -> str:
        """One."""
        return "1"

class Pair(Set):
    @tool
    def two(self, ctx: ToolContext) -> str:
        """Two."""
        return "2"
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    picture = Image.new("RGB", (560, 280), "white")
    picture.paste("red", (100, 50, 200, 150))
    picture.save("picture.png")
    return tmp_path


def run(*arguments: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["tools", *arguments])
        raise SystemExit(0)
    return int(ended.value.code or 0)


def test_list_shows_how_each_tool_is_called(capsys: pytest.CaptureFixture[str]):
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"zoom\(box, image=1, factor=2.0\)  +Show a region", line) for line in lines)
    assert any(line.startswith("resize_image(") for line in lines) and any(line.startswith("crop(") for line in lines)


def test_list_names_what_is_broken(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    real = plugins.discover
    monkeypatch.setattr(plugins, "discover", lambda kind: plugins.Discovery(real(kind).found, {"bad": "OSError: gone"}))
    assert run("list") == 0
    out = capsys.readouterr().out
    assert "broken: bad: OSError: gone" in out and "zoom(" in out


def test_try_writes_the_picture(here: Path, capsys: pytest.CaptureFixture[str]):
    assert run("try", "zoom", "picture.png", "box=100,50,200,150", "--out", "seen.png") == 0
    with Image.open("seen.png") as seen:
        assert seen.size == (196, 196) and seen.getpixel((90, 90)) == (255, 0, 0)
    assert capsys.readouterr().out == "seen.png  196 × 196 pixels, 49 visual tokens\n"


def test_try_chooses_a_free_name_and_json_is_an_argument_too(here: Path):
    for name in ("picture-zoom.png", "picture-zoom-2.png"):
        assert run("try", "zoom", "picture.png", "box=[100, 50, 200, 150]", "factor=1") == 0
        with Image.open(name) as seen:
            assert seen.size == (112, 112)


def test_a_box_is_in_the_pixels_of_the_view_that_is_assumed(here: Path):
    assert run("try", "crop", "picture.png", "box=50,25,100,75", "--first-view", "0.5", "--out", "a.png") == 0
    with Image.open("a.png") as seen:
        assert seen.getpixel((50, 50)) == (255, 0, 0)
    assert run("try", "resize_image", "picture.png", "--first-view", "0.5", "--out", "b.png") == 0
    with Image.open("b.png") as whole:
        assert whole.size == (560, 280)


def test_a_tool_of_your_own_by_file(here: Path, capsys: pytest.CaptureFixture[str]):
    assert run("try", "./own.py:halves", "picture.png", "--out", "h.png") == 0
    assert capsys.readouterr().out.startswith("Here.\nh.png  280 × 140") and Path("h-2.png").exists()
    assert run("try", "./own.py:Set", "picture.png") == 0
    assert capsys.readouterr().out == "1\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("zom", "picture.png"), "Did you mean 'zoom'"),
        (("zoom", "none.png", "box=1,2,3,4"), "'none.png' does not exist"),
        (("zoom", "own.py", "box=1,2,3,4"), "not a readable picture"),
        (("zoom", "picture.png"), "needs the argument 'box'"),
        (("zoom", "picture.png", "bx=1,2,3,4"), "Did you mean 'box'"),
        (("zoom", "picture.png", "box=1,1,1,1"), "no area"),
        (("zoom", "picture.png", "box"), "not name=value"),
        (("zoom", "picture.png", "box=1,2,30,40", "--out", "picture.png"), "the picture itself"),
        (("zoom", "picture.png", "box=1,2,30,40", "--out", "nowhere/a.png"), "cannot write 'nowhere/a.png'"),
        (("zoom", "picture.png", "box=1,2,30,40", "--out", "a.nonsense"), "end --out in .png"),
        (("./own.py:crash", "picture.png"), "RuntimeError: out of luck"),
        (("./own.py:wordy", "picture.png"), "(RuntimeError: out of luck with �[2J many lines)"),
        (("zoom", "https://example.org/a.png", "box=1,2,3,4"), "'https://example.org/a.png': of all URLs only data:"),
        (("./own.py:Pair", "picture.png"), "set of tools (one, two)"),
        (("zoom", "picture.png", "box=1,2,30,40", "--first-view", "-1"), "scale"),
    ],
)
def test_each_mistake_is_one_clear_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
):
    before = Path("picture.png").read_bytes()
    assert run("try", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert Path("picture.png").read_bytes() == before


def test_a_tools_text_cannot_steer_the_terminal(here: Path, capsys: pytest.CaptureFixture[str]):
    assert run("try", "./own.py:painter", "picture.png") == 0
    assert capsys.readouterr().out == "�]0;mine�red\n"


def test_no_file_is_overwritten_and_a_forgotten_decorator_is_named(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "mine.png").write_bytes(b"mine")
    for arguments, said in (
        (["crop", "picture.png", "box=0,0,50,50", "--out", "mine.png"], "is there already"),
        (["./own.py:forgotten", "picture.png"], "put @tool above it"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(["tools", "try", *arguments])
        assert exit_.value.code and said in capsys.readouterr().err
    assert (here / "mine.png").read_bytes() == b"mine"
