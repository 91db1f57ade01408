"""Questions from files: columns, pictures, rows that are left out and said so."""

from __future__ import annotations

import base64
import copy
import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from agentvision.data import check_source, open_questions
from agentvision.data.files import files, hub
from agentvision.data.rows import Rows
from agentvision.errors import AgentVisionError, DataError, PluginError
from agentvision.images import open_image
from agentvision.recipe import Recipe
from agentvision.recipe.schema import Fields
from agentvision.train.prompts import PromptStream

VISIONTHINK = Fields.model_validate(
    {
        "question": "problem",
        "images": "images",
        "answer": ["original_answer", "solution"],
        "id": "doc_id",
        "meta": ["info", "data_source"],
    }
)
FILES = "agentvision.data.files:files"


GOOD = {"question": "q", "answer": "a", "image": "a.png"}


def png(colour: str = "red", size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def jsonl(path: Path, *rows: Any) -> Path:
    (path.parent / "a.png").write_bytes(png())
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def reasons(rows: Rows) -> dict[str, tuple[int, int]]:
    """How many rows each reason left out, and the first of them."""
    return {reason: (len(found), found[0]) for reason, found in rows.left_out.reasons.items()}


# --- text files -----------------------------------------------------------------------------------------------------


def test_a_line_of_json_is_a_question(tmp_path: Path) -> None:
    row = {"id": 7, "question": "Which <image>?", "image": "a.png", "answer": 3, "kind": "colour", "other": 1}
    path = jsonl(tmp_path / "q.jsonl", row)
    (sample,) = files(path=str(path), fields=Fields(meta=("kind", "absent")))
    assert (sample.id, sample.question, sample.answer) == ("7", "Which <image>?", "3")
    assert sample.meta == {"kind": "colour"}
    assert open_image(sample.images[0]).getpixel((0, 0)) == (255, 0, 0)


def test_ids_are_made_where_missing_and_numbered_where_repeated(tmp_path: Path) -> None:
    rows = [
        {"question": "q", "answer": "a", "image": "a.png", **more} for more in ({"id": "x"}, {}, {"id": "x"}, {"id": 0})
    ]
    assert [sample.id for sample in files(path=str(jsonl(tmp_path / "q.jsonl", *rows)))] == ["x", "1", "x#2", "0"]


def test_every_bad_row_is_counted_by_reason_and_none_is_replaced(tmp_path: Path) -> None:
    good = {"question": "q", "answer": "a", "image": "a.png"}
    inline = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    (tmp_path / "data").mkdir()
    path = jsonl(
        tmp_path / "data" / "q.jsonl",
        good,
        "not json",
        "[1]",
        '{"question": "q", "answer": ' + "[" * 3000,
        good | {"question": "  "},
        good | {"answer": None},
        good | {"answer": ["a", "b"]},
        good | {"answer": True},
        '{"question": "q", "answer": NaN, "image": "a.png"}',
        good | {"question": "\ud800"},
        good | {"image": []},
        good | {"image": "gone.png"},
        good | {"image": "../secret.png"},
        good | {"image": "/etc/hostname"},
        good | {"image": "https://x.org/a.png"},
        good | {"image": 5},
        good | {"image": "data:nonsense"},
        good | {"image": ["a.png", ""]},
        good | {"image": inline},
    )
    (tmp_path / "secret.png").write_bytes(png())
    rows = files(path=str(path))
    assert [sample.id for sample in rows] == ["0", "18"]
    assert open_image(rows[1].images[0]).size == (6, 4)
    assert reasons(rows) == {
        "not a line of JSON": (2, 2),
        "not a JSON object": (1, 3),
        "no question": (1, 5),
        "no answer": (1, 6),
        "the answer is not a text": (2, 7),
        "the answer is not a finite number": (1, 9),
        "the question holds half of a surrogate pair": (1, 10),
        "no picture": (1, 11),
        "a picture's file is missing": (1, 12),
        "a picture lies outside the data's folder (name the option root)": (2, 13),
        "a picture is a URL, and nothing is fetched (download it, and name the file)": (1, 15),
        "a picture is neither a path nor a data: URL nor bytes": (2, 16),
        "a picture is not a valid data: URL": (1, 17),
    }
    told = str(rows.left_out)
    assert told.startswith(
        "17 of 19 rows left out: not a line of JSON: 2 (lines 2, 4); not a JSON object: 1 (line 3); "
    )


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    path = jsonl(
        tmp_path / "data" / "q.jsonl", GOOD | {"image": "link.png"}, GOOD | {"image": "folder/secret.png"}, GOOD
    )
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path)
    rows = files(path=str(path))
    assert (len(rows), reasons(rows)) == (
        1,
        {"a picture lies outside the data's folder (name the option root)": (2, 1)},
    )


def test_a_rank_reads_no_rows_but_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentvision.data.text import JsonlFile

    read: list[int] = []
    row = JsonlFile.row
    monkeypatch.setattr(JsonlFile, "row", lambda self, index: read.append(index) or row(self, index))
    path = jsonl(tmp_path / "q.jsonl", *[GOOD] * 20)
    shares = []
    for rank in range(2):
        questions = files(path=str(path))
        assert read == []  # opening a set reads no row whole
        PromptStream(questions, seed=1, rank=rank, world=2).take(10)
        shares.append(set(read))
        read.clear()
    assert [len(share) for share in shares] == [10, 10] and not shares[0] & shares[1]


def test_a_root_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "b.png").write_bytes(png())
    path = jsonl(tmp_path / "data" / "q.jsonl", {"question": "q", "answer": "a", "images": ["b.png", "b.png"]})
    (sample,) = files(path=str(path), root=str(tmp_path / "pictures"))
    assert sample.images == ((tmp_path / "pictures" / "b.png").resolve(),) * 2


def test_what_is_not_needed_may_be_missing(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", {"question": "q"})
    (sample,) = files(path=str(path), fields=Fields(images=(), answer=()))
    assert (sample.images, sample.answer) == ((), None)


def test_csv_tsv_and_json_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "q.csv").write_text('question,image,answer\n"a, b",a.png,x\nq,a.png,y,z\n')
    (tmp_path / "q.tsv").write_text("question\timage\tanswer\na, b\ta.png\tx\n")
    (tmp_path / "q.json").write_text('[{"question": "a, b", "image": "a.png", "answer": "x"}, 3]')
    for name in ("q.csv", "q.tsv", "q.json"):
        rows = files(path=str(tmp_path / name))
        assert [(s.question, s.answer) for s in rows] == [("a, b", "x")]
    assert reasons(files(path=str(tmp_path / "q.csv"))) == {"more cells than the header has": (1, 3)}


def test_the_splits_name_fills_the_path(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", {"question": "held out", "answer": "a", "image": "a.png"})
    (sample,) = files(path=f"{tmp_path}/{{split}}.jsonl", split="test")
    assert sample.question == "held out"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.txt", b"", "is none of .arrow, .csv"),
        ("q.json", b"{}", "holds no JSON array"),
        ("q.json", b"[", "cannot be read (JSONDecodeError)"),
        ("q.csv", b"\xff\xfe", "cannot be read (UnicodeDecodeError)"),
        ("q.parquet", b"junk", "cannot be read"),
        ("q.arrow", b"junk", "cannot be read"),
        (
            "q.jsonl",
            b'{"text": "q", "answer": "a"}',
            "there is no column 'question' or 'problem'; set fields.question to",
        ),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        files(path=str(tmp_path / name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"Did you mean 'train.jsonl'"):
        files(path=str(tmp_path / "trian.jsonl"))


json_rows = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["question", "answer", "image", "id", "bytes", "path"]), inner, max_size=6)
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(json_rows, max_size=5))
def test_any_rows_are_questions_or_counted(tmp_path: Path, values: list[Any]) -> None:
    good = {"question": "q", "answer": "a", "image": "a.png"}
    rows = files(path=str(jsonl(tmp_path / "q.jsonl", good, *map(json.dumps, values))))
    assert len(rows) + rows.left_out.count == len(values) + 1
    for sample in rows:
        assert sample.question.strip() and sample.images
    assert len({sample.id for sample in rows}) == len(rows)


def test_rows_are_found_again_by_their_place_and_known_by_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "q.jsonl").write_bytes(
        b'\xef\xbb\xbf{"question": "one \xc3\xa9", "answer": "a", "image": "a.png"}\r\n'
        b'\n   \njunk\n{"question": "two", "answer": "b", "image": "a.png"}'
    )
    (tmp_path / "q.csv").write_bytes(
        b'\xef\xbb\xbfquestion,image,answer\r\n"one \xc3\xa9",a.png,"a\r\nmore"\r\n\r\njunk,a.png,x,y\r\ntwo,a.png,b'
    )
    lines, cells = (files(path=str(tmp_path / name)) for name in ("q.jsonl", "q.csv"))
    for rows in (lines, cells):
        assert [rows[i].question for i in (1, 0, -1)] == ["two", "one é", "two"]
    assert [lines.place(i) for i in range(2)] == ["line 1", "line 5"]
    assert [cells.place(i) for i in range(2)] == ["line 2", "line 6"]
    assert (str(lines.left_out), str(cells.left_out)) == (
        "1 of 3 rows left out: not a line of JSON: 1 (line 4)",
        "1 of 3 rows left out: more cells than the header has: 1 (line 5)",
    )
    assert cells[0].answer == "a\r\nmore"


def test_a_file_that_changes_under_its_reader_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", GOOD, GOOD)
    rows = files(path=str(path))
    jsonl(path, GOOD | {"question": "another"}, GOOD)
    with pytest.raises(DataError, match="was changed while it was in use"):
        rows[1]


csv_cells = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip()
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(csv_cells, csv_cells), max_size=5))
def test_any_cells_are_read_back_in_any_order(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    with (tmp_path / "q.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("question", "answer"), *rows])
    found = files(path=str(tmp_path / "q.csv"), fields=Fields(images=()))
    assert [(found[i].question, found[i].answer) for i in reversed(range(len(rows)))] == rows[::-1]


# --- datasets -------------------------------------------------------------------------------------------------------


def visionthink_rows() -> list[dict[str, Any]]:
    return [
        {
            "problem": "<image>What is it?",
            "images": {"bytes": png("blue"), "path": None},
            "original_answer": "blue",
            "solution": "no",
            "info": {"tgt_width": 3, "tgt_height": 2, "use_tool": True},
            "data_source": "open_source",
            "doc_id": "d",
        },
        {
            "problem": "<image>And this?",
            "images": {"bytes": png("red"), "path": "x.png"},
            "original_answer": None,
            "solution": "red",
            "info": None,
            "data_source": "open_source",
            "doc_id": "d",
        },
        {
            "problem": "<image>Nothing",
            "images": None,
            "original_answer": "x",
            "solution": None,
            "info": None,
            "data_source": "open_source",
            "doc_id": "e",
        },
        {
            "problem": "<image>Empty",
            "images": {"bytes": b"", "path": None},
            "original_answer": "x",
            "solution": None,
            "info": None,
            "data_source": "open_source",
            "doc_id": "f",
        },
    ]


@pytest.fixture(params=["saved", "saved splits", "parquet", "arrow", "folder of arrow"])
def visionthink(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set's schema in each layout that it is found in."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = datasets.Dataset.from_list(visionthink_rows())
    folder = tmp_path / "set"
    if request.param == "saved":
        data.save_to_disk(folder)
    elif request.param == "saved splits":
        datasets.DatasetDict({"train": data, "other": data.select([0])}).save_to_disk(folder)
    elif request.param == "parquet":
        data.to_parquet(tmp_path / "set.parquet")
        return tmp_path / "set.parquet"
    else:
        data.save_to_disk(tmp_path / "saved")
        (arrow,) = (tmp_path / "saved").glob("*.arrow")
        if request.param == "arrow":
            return arrow
        folder.mkdir()
        arrow.rename(folder / arrow.name)
    return folder


def test_the_visionthink_schema_is_read_in_every_layout(visionthink: Path) -> None:
    rows = files(path=str(visionthink), fields=VISIONTHINK)
    assert [(s.id, s.question, s.answer) for s in rows] == [
        ("d", "<image>What is it?", "blue"),
        ("d#2", "<image>And this?", "red"),
    ]
    assert rows[0].meta == {
        "info": {"tgt_width": 3, "tgt_height": 2, "use_tool": True},
        "data_source": "open_source",
    }
    assert [open_image(s.images[0]).getpixel((0, 0)) for s in rows] == [(0, 0, 255), (255, 0, 0)]
    assert reasons(rows) == {"no picture": (2, 3)}


@pytest.mark.parametrize("decoded", [True, False], ids=["image feature", "plain struct"])
def test_lists_of_pictures(tmp_path: Path, decoded: bool) -> None:
    import datasets

    pictures = [{"bytes": png(colour), "path": None} for colour in ("red", "lime")]
    rows = [
        {"question": "two", "answer": "a", "images": pictures},
        {"question": "none", "answer": "a", "images": []},
        {"question": "gone", "answer": "a", "images": None},
    ]
    if not decoded:  # the library copies a file into the data set when it knows that its path is a picture's
        rows.append({"question": "outside", "answer": "a", "images": [{"bytes": None, "path": "/etc/hostname"}]})
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features(
        question=datasets.Value("string"),
        answer=datasets.Value("string"),
        images=datasets.List(datasets.Image() if decoded else struct),
    )
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "set")
    found = files(path=str(tmp_path / "set"))
    assert [[open_image(i).getpixel((0, 0)) for i in s.images] for s in found] == [[(255, 0, 0), (0, 255, 0)]]
    outside = {"a picture lies outside the data's folder (name the option root)": (1, 4)}
    assert reasons(found) == {"no picture": (2, 2)} | ({} if decoded else outside)


@pytest.mark.parametrize("shuffled", [False, True])
def test_pictures_stay_with_their_rows(tmp_path: Path, shuffled: bool) -> None:
    import datasets

    rows = [
        {"question": str(i), "answer": "a", "images": [{"bytes": png(size=(1 + i, 2)), "path": None}] * (i % 3)}
        for i in range(200)
    ]
    data = datasets.Dataset.from_list(rows)
    (data.shuffle(seed=1) if shuffled else data).save_to_disk(tmp_path / "set", num_shards=3)
    found = files(path=str(tmp_path / "set"))
    assert {s.question: [open_image(i).width for i in s.images] for s in found} == {
        str(i): [1 + i] * (i % 3) for i in range(200) if i % 3
    }
    assert len(found.left_out.reasons["no picture"]) == 67


def test_a_selection_of_a_data_set_keeps_its_order(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list([{"question": str(i), "answer": "a"} for i in range(2500)]).shuffle(seed=1)
    data.save_to_disk(tmp_path / "set")
    rows = files(path=str(tmp_path / "set"), fields=Fields(images=()))
    assert [s.question for s in rows[:3]] == data["question"][:3]
    assert rows[2300].question == data[2300]["question"]


def test_an_unknown_split_lists_those_there_are(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(visionthink_rows())}).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"has no split 'test'\. Known: train"):
        files(path=str(tmp_path / "set"), split="test", fields=VISIONTHINK)


def test_a_data_set_that_the_hub_does_not_give_is_one_clear_error() -> None:
    with pytest.raises(DataError, match=r"'nobody/nothing' cannot be read \(\w+\): ") as caught:
        hub(path="nobody/nothing")
    assert "\n" not in str(caught.value)


# --- by a recipe ----------------------------------------------------------------------------------------------------


def recipe_over(data: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.model_validate({"name": "n", "model": {"path": "m"}, "rewards": ["accuracy"], "data": data, **more})


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


# --- held-out questions ---------------------------------------------------------------------------------------------


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
