"""A file is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentvision._whole_file import whole_file


def test_what_was_there_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    with whole_file(path) as part:
        part.write_text("ne")
        assert path.read_text() == "old"
        part.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    with pytest.raises(OSError, match="disk full"), whole_file(path) as part:
        part.write_text("ne")
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "no" / "page.html") as part:
        part.write_text("new")
