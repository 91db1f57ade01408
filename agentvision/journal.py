"""The journal: every trajectory of a run on disk, and back again.

`trajectories.jsonl` is append-only, one JSON object a line: `{"schema": 1, "step": 3, "trajectory": {…}}`; the pixels
stand beside it, each image once, as `images/<hash>.png`. A run that resumes from step k appends
`{"schema": 1, "rewind": k}`: what stood there for step k and later is history, and readers leave it out. Sharding,
compression and indexing are left out: a reader streams.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from agentvision._json_values import codec
from agentvision._whole_file import whole_file
from agentvision.errors import RunError
from agentvision.jsonl import JsonLines, read_lines
from agentvision.run_folder import IMAGES, TRAJECTORIES
from agentvision.types import SCHEMA_VERSION, Group, ImageHash, Trajectory

if TYPE_CHECKING:
    from PIL import Image

    from agentvision.images import ImageStore

_encode, _decode = codec(Trajectory)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A trajectory and the training step (or, in an evaluation, 0) that made it."""

    step: int
    trajectory: Trajectory


class Journal:
    """Writes the trajectories of one run; safe to share between threads, one process at a time.

    `rewind_to` is for a run that resumes: what an earlier attempt wrote for that step and later is superseded.
    """

    def __init__(self, directory: Path | str, *, rewind_to: int | None = None) -> None:
        self.directory = Path(directory)
        self._images = self.directory / IMAGES
        self._lock = threading.Lock()
        try:
            self._images.mkdir(parents=True, exist_ok=True)
            self._written: set[ImageHash] = {path.stem for path in self._images.glob("*.png")}
            self._file = JsonLines(self.directory / TRAJECTORIES)
        except OSError as error:
            raise RunError(f"{self.directory}: cannot write a journal here: {error}") from error
        if rewind_to is not None and not self._file.empty:
            self._file.append({"schema": SCHEMA_VERSION, "rewind": rewind_to})

    def append(self, trajectories: Iterable[Trajectory], *, step: int, store: ImageStore) -> None:
        """Write trajectories and those of their images that are not there yet. A sample's own `images` are dropped.

        Raises:
            RunError: the disk refuses (full, read-only); the file then ends with the last whole line.
        """
        trajectories = list(trajectories)
        with self._lock:
            try:
                for key in {key for t in trajectories for key in (*t.originals, *(view.image for view in t.views))}:
                    self._write_image(key, store)
            except OSError as error:
                raise RunError(f"{self._images}: cannot write an image: {error}; free space, then resume") from error
            self._file.append(*(to_json(trajectory, step=step) for trajectory in trajectories))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _write_image(self, key: ImageHash, store: ImageStore) -> None:
        if key in self._written:
            return
        with whole_file(image_path(self.directory, key)) as part:
            store.get(key).save(part, format="PNG", compress_level=4)
        self._written.add(key)


def to_json(trajectory: Trajectory, *, step: int) -> dict[str, Any]:
    """One line of the journal, as a JSON value."""
    if trajectory.sample.images:
        trajectory = replace(trajectory, sample=replace(trajectory.sample, images=()))
    return {"schema": SCHEMA_VERSION, "step": step, "trajectory": _encode(trajectory)}


def read_trajectories(directory: Path | str) -> Iterator[JournalEntry]:
    """Read a journal back, in the order written; each trajectory equals the one that was appended.

    Raises:
        RunError: there is no journal, a line before the last is damaged, or it was written with another schema.
    """
    path = Path(directory) / TRAJECTORIES
    rewinds = [(number, record["rewind"]) for number, record in _records(path, only=b'"rewind"') if "rewind" in record]
    for number, record in _records(path):
        if "rewind" in record or any(later > number and record["step"] >= step for later, step in rewinds):
            continue
        try:
            entry = JournalEntry(step=record["step"], trajectory=_decode(record["trajectory"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{path}:{number}: not a trajectory of schema {SCHEMA_VERSION}: {error}") from error
        yield entry


def in_groups(entries: Iterable[JournalEntry]) -> Iterator[tuple[int, Group]]:
    """(step, group) of a journal's entries: the rollouts of a prompt stand one after another, counted from 0."""
    step, members = 0, []
    for entry in entries:
        t = entry.trajectory
        if members and not (
            entry.step == step and t.sample.id == members[-1].sample.id and t.rollout > members[-1].rollout
        ):
            yield step, Group(members[0].sample, tuple(members))
            members = []
        step = entry.step
        members.append(t)
    if members:
        yield step, Group(members[0].sample, tuple(members))


def image_path(directory: Path | str, key: ImageHash) -> Path:
    """Where the journal in `directory` keeps an image. Raises `RunError` for a name that is no hash."""
    if not key.isalnum():
        raise RunError(f"{key!r} is not the hash of an image")
    return Path(directory) / IMAGES / f"{key}.png"


def load_image(directory: Path | str, key: ImageHash) -> Image.Image:
    """The pixels of an image of the journal, as RGB. Raises `RunError` when they are missing or damaged."""
    from PIL import Image

    path = image_path(directory, key)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RunError(f"{path}: cannot read an image of the journal: {error}") from error


def _records(path: Path, *, only: bytes = b"") -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of each whole line of this schema that holds the bytes `only`."""
    for number, record in read_lines(path, only=only, warn=not only):
        if record.get("schema") != SCHEMA_VERSION:
            raise RunError(
                f"{path}:{number}: written with schema {record.get('schema')!r}, this program reads schema "
                f"{SCHEMA_VERSION}; read it with the version of agentvision that wrote it"
            )
        yield number, record
