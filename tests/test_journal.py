"""The journal gives back what was written, whatever was in it, and survives what kills a run."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agentvision.errors import RunError
from agentvision.geometry import Affine
from agentvision.images import ImageStore
from agentvision.journal import Journal, JournalEntry, image_path, in_groups, load_image, read_trajectories
from agentvision.types import (
    ImageSegment,
    Message,
    ParsedTurn,
    ParseProblem,
    Sample,
    Score,
    StopReason,
    TextSegment,
    ToolCall,
    ToolError,
    ToolRecord,
    Trajectory,
    Turn,
    View,
    ViewPart,
)

# Lone surrogates included: a model's JSON arguments may hold them.
text = st.text(st.characters(exclude_categories=()), max_size=20)
number = st.floats(allow_nan=False)
count = st.integers(0, 10**6)
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | number | text | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(text | st.integers() | st.just("$"), inner, max_size=3)
    ),
    max_leaves=6,
)
meta = st.dictionaries(text, json_like, max_size=3)


def tuples(inner: st.SearchStrategy[Any], most: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(inner, max_size=most).map(tuple)


@st.composite
def text_segments(draw: st.DrawFn) -> TextSegment:
    ids = draw(tuples(count, 6))
    sampled = draw(st.booleans())
    logprobs = tuple(draw(st.lists(number, min_size=len(ids), max_size=len(ids)))) if sampled else None
    return TextSegment(ids, sampled=sampled, logprobs=logprobs, version=draw(count))


calls = st.builds(ToolCall, name=text, arguments=meta)
records = st.builds(
    ToolRecord,
    call=calls,
    views=tuples(count),
    text=text,
    error=st.none() | st.sampled_from(ToolError),
    detail=text,
    seconds=number,
)
parsed = st.builds(
    ParsedTurn,
    think=st.none() | text,
    call=st.none() | calls,
    answer=st.none() | text,
    problem=st.none() | st.sampled_from(ParseProblem),
    detail=text,
)
turns = st.builds(Turn, text=text, parsed=parsed, tool=st.none() | records, tokens=count, seconds=number)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant"]),
    parts=tuples(text | st.builds(ViewPart, view=count)),
)
sizes = st.tuples(count, count)
views = st.builds(
    View,
    index=count,
    image=st.just("ab12"),
    original=st.just("cd34"),
    transform=st.builds(Affine, a=number, c=number),
    size=sizes,
    original_size=sizes,
    tokens=count,
    source=text,
)
segments = text_segments() | st.builds(
    ImageSegment, view=count, image=st.just("ab12"), grid=st.tuples(count, count, count), tokens=count
)
trajectories = st.builds(
    Trajectory,
    sample=st.builds(Sample, id=text, question=text, answer=st.none() | text, meta=meta),
    turns=tuples(turns),
    messages=tuples(messages),
    views=tuples(views),
    stop=st.sampled_from(StopReason),
    answer=st.none() | text,
    segments=tuples(segments),
    originals=tuples(st.just("cd34")),
    full_tokens=count,
    rollout=count,
    seconds=number,
    error=text,
    scores=st.dictionaries(text, st.builds(Score, value=st.none() | number, reason=text), max_size=3),
    reward=st.none() | number,
    correct=st.none() | st.booleans(),
)


class OneImage(ImageStore):
    """Gives the same picture for every name."""

    def get(self, key: str) -> Image.Image:
        return Image.new("RGB", (4, 3), (1, 2, 3))


def plain(name: str = "a") -> Trajectory:
    return Trajectory(sample=Sample(name, "?"), turns=(), messages=(), views=(), stop=StopReason.ANSWERED)


def test_what_is_read_equals_what_was_written() -> None:
    @given(st.lists(st.tuples(st.integers(0, 9), trajectories), max_size=3))
    @settings(max_examples=60, deadline=None)
    def check(written: list[tuple[int, Trajectory]]) -> None:
        with tempfile.TemporaryDirectory() as directory:
            with Journal(directory) as journal:
                for step, trajectory in written:
                    journal.append([trajectory], step=step, store=OneImage())
            read = [(entry.step, entry.trajectory) for entry in read_trajectories(directory)]
        assert read == written
        # == takes 1 for True and 1 for 1.0; the types must agree too
        assert repr(read) == repr(written)

    check()


def test_non_finite_numbers_survive_in_strict_json(tmp_path: Path) -> None:
    score = Score(float("nan"))
    with Journal(tmp_path) as journal:
        journal.append(
            [plain().with_scores({"x": score}, reward=float("-inf"), correct=None)], step=0, store=ImageStore()
        )
    line = (tmp_path / "trajectories.jsonl").read_text()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (entry,) = read_trajectories(tmp_path)
    assert str(entry.trajectory.scores["x"].value) == "nan"
    assert entry.trajectory.reward == float("-inf")


def test_a_value_that_has_no_json_is_kept_as_text_and_kills_nothing(tmp_path: Path) -> None:
    sample = Sample("a", "?", meta={"path": Path("somewhere"), "good": frozenset({1})})
    with Journal(tmp_path) as journal:
        journal.append([replace(plain(), sample=sample)], step=0, store=ImageStore())
    (entry,) = read_trajectories(tmp_path)
    assert "somewhere" in entry.trajectory.sample.meta["path"]
    assert entry.trajectory.sample.meta["good"] == {1}


def test_each_image_is_written_once_with_its_exact_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ImageStore()
    image = Image.effect_noise((37, 21), 90).convert("RGB")
    key = store.add(image)
    view = View(1, key, key, Affine(), (37, 21), (37, 21), 4, "first_view")
    trajectory = replace(plain(), views=(view,), originals=(key,))
    saved: list[object] = []
    real = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda self, *a, **k: (saved.append(a), real(self, *a, **k))[1])
    for step in range(2):  # a second journal in the same place finds what the first wrote
        with Journal(tmp_path) as journal:
            journal.append([trajectory, trajectory], step=step, store=store)
            journal.append([trajectory], step=step, store=store)
    assert len(saved) == 1
    assert load_image(tmp_path, key).tobytes() == image.tobytes()
    assert [path.name for path in (tmp_path / "images").iterdir()] == [f"{key}.png"]


def test_images_of_the_sample_are_dropped(tmp_path: Path) -> None:
    sample = Sample("a", "?", images=(Image.new("RGB", (2, 2)),))
    with Journal(tmp_path) as journal:
        journal.append([replace(plain(), sample=sample)], step=0, store=ImageStore())
    assert next(read_trajectories(tmp_path)).trajectory.sample == Sample("a", "?")


@pytest.mark.parametrize("cut", [1, 10])
def test_a_torn_last_line_is_reported_and_skipped_then_written_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int
) -> None:
    path = tmp_path / "trajectories.jsonl"
    with Journal(tmp_path) as journal:
        journal.append([plain("whole"), plain("torn")], step=0, store=ImageStore())
    path.write_bytes(path.read_bytes()[:-cut])
    with caplog.at_level(logging.WARNING):
        assert [e.trajectory.sample.id for e in read_trajectories(tmp_path)] == ["whole"]
    assert "torn last line" in caplog.text
    with Journal(tmp_path) as journal:
        journal.append([plain("after")], step=1, store=ImageStore())
    assert [e.trajectory.sample.id for e in read_trajectories(tmp_path)] == ["whole", "after"]


def test_a_resumed_run_supersedes_what_it_does_again(tmp_path: Path) -> None:
    def write(names: str, *, rewind_to: int | None = None, first: int = 0) -> None:
        with Journal(tmp_path, rewind_to=rewind_to) as journal:
            for step, name in enumerate(names, start=first):
                journal.append([plain(name)], step=step, store=ImageStore())

    write("abcd")
    write("CD", rewind_to=2, first=2)
    write("E", rewind_to=3, first=3)
    assert [(e.step, e.trajectory.sample.id) for e in read_trajectories(tmp_path)] == [
        (0, "a"),
        (1, "b"),
        (2, "C"),
        (3, "E"),
    ]


def test_a_full_disk_leaves_whole_lines_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path) as journal:
        journal.append([plain("first")], step=0, store=ImageStore())

        class Full:
            """Takes half of what it is given, then refuses."""

            def __init__(self, file: Any) -> None:
                self.file, self.calls = file, 0

            def write(self, data: memoryview) -> int:
                self.calls += 1
                if self.calls > 1:
                    raise OSError(28, "No space left on device")
                return self.file.write(data[: len(data) // 2])

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        whole = journal._file._file
        monkeypatch.setattr(journal._file, "_file", Full(whole))
        with pytest.raises(RunError, match="No space left"):
            journal.append([plain("lost")], step=1, store=ImageStore())
        monkeypatch.setattr(journal._file, "_file", whole)
        journal.append([plain("later")], step=2, store=ImageStore())
    assert [e.trajectory.sample.id for e in read_trajectories(tmp_path)] == ["first", "later"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"schema":99,"step":0,"trajectory":{}}', r"trajectories.jsonl:1: .*schema 99.*reads schema 1"),
        ('{"step":0}', r":1: .*schema None"),
        ("[1]", r":1: expected a JSON object"),
        ('{"schema":1,"step":0,"trajectory":{"sample":{}}}', r":1: not a trajectory"),
        ('{"schema":1,"step":0,"trajectory":{"surprise":1}}', r"no field 'surprise'"),
        ('{"schema":1,', r":1: damaged line"),
    ],
)
def test_what_is_not_a_journal_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "trajectories.jsonl").write_text(line + "\n")
    with pytest.raises(RunError, match=message):
        list(read_trajectories(tmp_path))


def test_a_missing_journal_and_a_missing_image_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot read"):
        list(read_trajectories(tmp_path / "nothing"))
    with pytest.raises(RunError, match="cannot read an image"):
        load_image(tmp_path, "ab12")
    with pytest.raises(RunError, match="not the hash"):
        image_path(tmp_path, "../../etc/passwd")


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("", []),
        ("1a0", ["1a0"]),
        ("1a0 1a1 1a2 1b0 1b1", ["1a0 1a1 1a2", "1b0 1b1"]),
        ("1a0 1a1 1a0 1a1", ["1a0 1a1", "1a0 1a1"]),  # one question drawn twice in a step
        ("1a0 1a1 2a0 2a1", ["1a0 1a1", "2a0 2a1"]),
        ("1a0 1a2 2a3", ["1a0 1a2", "2a3"]),  # the next step's, though its count goes on
        ("0a0 0b0 0b0", ["0a0", "0b0", "0b0"]),  # an evaluation: one a question
    ],
)
def test_a_journals_groups_are_those_that_were_written(written: str, groups: list[str]) -> None:
    """Each word is a step, a question and a rollout."""
    entries = [
        JournalEntry(int(step), Trajectory(Sample(name, "?"), (), (), (), StopReason.ANSWERED, rollout=int(rollout)))
        for step, name, rollout in written.split()
    ]
    found = [
        " ".join(f"{step}{group.sample.id}{t.rollout}" for t in group.trajectories)
        for step, group in in_groups(entries)
    ]
    assert found == groups
