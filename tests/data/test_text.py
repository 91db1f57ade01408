"""Questions from text files: columns, pictures, rows that are left out and said so."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentvision.data.files import files
from agentvision.errors import DataError
from agentvision.images import open_image
from agentvision.recipe.dataset import Fields
from agentvision.train.prompts import PromptStream

from .cases import GOOD, jsonl, png, reasons


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
