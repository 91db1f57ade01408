"""Files of records: whole lines or none, whatever ends the writer."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.errors import RunError
from agentvision.jsonl import JsonLines, keep_lines, read_lines

value = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=()), max_size=20)
records = st.lists(st.dictionaries(st.text(max_size=5), value, max_size=3), max_size=6)


@settings(deadline=None)
@given(records, st.integers(0, 400))
def test_a_file_cut_anywhere_gives_back_its_whole_lines_and_can_be_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], kept: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    file = JsonLines(path)
    file.append(*rows)
    file.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    count = whole[:kept].count(b"\n")
    assert list(read_lines(path, warn=False)) == list(enumerate(rows[:count], start=1))
    file = JsonLines(path)
    file.append({"later": 1})
    file.close()
    assert [row for _, row in read_lines(path)] == [*rows[:count], {"later": 1}]


def test_threads_do_not_mix_their_records(tmp_path: Path) -> None:
    file = JsonLines(tmp_path / "rows.jsonl")
    threads = [
        threading.Thread(target=lambda k=k: [file.append({"k": k}, {"k": k, "n": "x" * 5000}) for _ in range(20)])
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [row for _, row in read_lines(file.path)]
    assert len(rows) == 160
    assert all(a["k"] == b["k"] for a, b in zip(rows[::2], rows[1::2], strict=True))


def test_a_torn_end_is_said_aloud_unless_it_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n{"a"')
    with caplog.at_level(logging.WARNING):
        list(read_lines(path, warn=False))
        assert not caplog.text
        list(read_lines(path))
    assert "rows.jsonl:2: skipped a torn last line of 4 bytes" in caplog.text


def test_keeping_some_lines_leaves_exactly_those(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    keep_lines(path, [{"step": k} for k in range(3)])
    keep_lines(path, [row for _, row in read_lines(path) if row["step"] < 2])
    assert [row for _, row in read_lines(path)] == [{"step": 0}, {"step": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(("line", "message"), [("{", ":1: damaged line"), ("[1]", r":1: expected a JSON object")])
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + '\n{"a": 1}\n')
    with pytest.raises(RunError, match=message):
        list(read_lines(path))
