"""`agentvision data` as a user types it."""

import json

import pytest
from PIL import Image

from agentvision.cli import main


@pytest.fixture
def asked(tmp_path):
    """A file of three questions about one picture each, one of them bad."""
    rows = []
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (56, 56), colour).save(tmp_path / f"{name}.png")
        rows.append({"text": f"What is {name}?", "answer": colour, "image": f"{name}.png"})
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "good.jsonl").write_text("\n".join(lines))
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, "junk"]))
    return tmp_path


def run(*words: object) -> int:
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_check_says_what_is_wrong_and_ends_with_1(asked, capsys):
    assert run("data", "check", asked / "bad.jsonl", "data.fields.question=text") == 1
    out = capsys.readouterr().out
    assert "question from text" in out
    assert "error: 1 of 3 rows: not a line of JSON (line 3)" in out
    assert run("data", "check", asked / "good.jsonl", "data.fields.question=text", "--headers-only") == 0


def test_check_as_json(asked, capsys):
    assert run("data", "check", asked / "bad.jsonl", "data.fields.question=text", "--json", "--n", 1) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["sets"][""]["bad_rows"] == {"not a line of JSON": ["line 3"]}
    assert (report["sets"][""]["checked"], report["sets"][""]["tokens_full"]["most"]) == (1, 4)


def test_a_mapping_that_does_not_fit_names_the_columns(asked, capsys):
    assert run("data", "check", asked / "good.jsonl") == 2
    assert (
        "there is no column 'question' or 'problem'; set fields.question to one of text, answer"
        in capsys.readouterr().err
    )


def test_glyphs_on_disk_pass_the_check(tmp_path, capsys):
    for split in ("train", "test"):
        assert run("data", "glyphs", "--out", tmp_path, "--n", 12, "--split", split) == 0
    assert "source: files" in capsys.readouterr().out
    assert run("data", "check", tmp_path / "{split}.jsonl", "model.path=package://tiny-vlm") == 0
    assert "24 to 24" in capsys.readouterr().out
    assert run("data", "glyphs", "--out", tmp_path, "--n", 12) == 2
    assert "is not overwritten" in capsys.readouterr().err


def test_a_recipe_is_checked_with_both_its_splits(capsys):
    assert run("data", "check", "visionthink", "--profile", "tiny", "--n", 10) == 0
    out = capsys.readouterr().out
    assert "train:" in out and "eval:" in out


def test_show_writes_the_sheet(asked, tmp_path, capsys):
    out = tmp_path / "sheet.html"
    assert run("data", "show", asked / "good.jsonl", "data.fields.question=text", "--n", 1, "--out", out) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert "1 of 2" in out.read_text()


def test_split_wants_a_recipe_that_can_be_split(tmp_path, capsys):
    assert run("data", "split", "vanilla", "--profile", "tiny", "--out", tmp_path) == 2
    assert "env.first_view.scale is 1" in capsys.readouterr().err


def test_a_file_is_split_by_visionthinks_way_of_asking(asked):
    from agentvision.cli._target import open_to_split

    recipe, questions = open_to_split(
        str(asked / "good.jsonl"), overrides=["data.fields.question=text", "model.path=other"], profile="tiny"
    )
    assert (recipe.name, recipe.model.path) == ("visionthink", "other")
    assert [sample.question for sample in questions] == ["What is a?", "What is b?"]
