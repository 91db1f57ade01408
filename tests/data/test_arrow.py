"""Questions from what the datasets library reads, in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentvision.data.files import files, hub
from agentvision.errors import DataError
from agentvision.images import open_image
from agentvision.recipe.dataset import Fields

from .cases import VISIONTHINK, png, reasons


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
