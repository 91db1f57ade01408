"""Rows of a table as questions.

A recipe's `data.fields` says which column holds what. Every row is looked at once, without its pictures' bytes: one
that cannot become a question is left out, counted by its reason, and reported; nothing takes its place. What is kept is
made into a `Sample` when it is asked for, so that a rank reads no rows but its own.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from agentvision.errors import DataError, ImageError
from agentvision.images import decode_data_url
from agentvision.recipe.dataset import Fields
from agentvision.types import ImageSource, Sample

_SHOWN = 3
"""Row numbers that a report names for each reason."""


class Unread(bytes):
    """In a light row: an encoded picture that was not read. Its value tells it from others, or is the same for all."""


class Table(Protocol):
    """What a file format gives: its columns, a light pass over all rows, and one whole row at a time."""

    unit: ClassVar[str]
    """What `number` counts: rows, or a text file's lines."""

    @property
    def columns(self) -> Sequence[str]:
        """Known after the light pass at the latest."""
        ...

    def light_rows(
        self, columns: Sequence[str], images: Sequence[str], *, tails: bool = False
    ) -> Iterator[Mapping[str, Any] | str]:
        """Each row's values of both kinds of columns, or the reason why it is no row. A picture may be `Unread`.

        With `tails` an `Unread` differs between pictures, as far as their lengths and last bytes do.
        """
        ...

    def row(self, index: int) -> Mapping[str, Any]: ...

    def number(self, index: int) -> int:
        """Of a row that the light pass has seen, from 1."""
        ...


class Layout:
    """What a stored schema says beyond its `Fields`. This one says nothing."""

    columns: Sequence[str] = ()
    """Looked at in the light pass, beside those of the fields."""

    def problem(self, row: Mapping[str, Any]) -> str:
        """Why a light row is no question; empty when it is one."""
        return ""

    def complete(self, sample: Sample, row: Mapping[str, Any]) -> Sample:
        """The sample with what else its row says."""
        return sample


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The part of a table that `train` or `test` gets when a share of its rows is held out for `test`.

    Rows whose first picture is the same fall on the same side, however often the table is opened, and wherever in it
    they stand; those without pictures go by their question.
    """

    share: float
    split: str

    def __post_init__(self) -> None:
        if not isinstance(self.share, int | float) or not 0 < self.share < 1:
            raise DataError(f"holdout is {self.share!r}; it is a share above 0 and below 1, such as 0.05")
        if self.split not in ("train", "test"):
            raise DataError(f"with holdout the splits are 'train' and 'test', not {self.split!r}")

    def takes(self, key: bytes) -> bool:
        place = int.from_bytes(hashlib.sha256(key).digest()[:8], "big") / 2**64
        return (place < self.share) == (self.split != "train")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that are no questions: of how many, and for each reason the numbers (from 1, in `unit`s) of those it is."""

    rows: int = 0
    reasons: Mapping[str, Sequence[int]] = field(default_factory=dict)
    unit: str = "row"

    @property
    def count(self) -> int:
        return sum(map(len, self.reasons.values()))

    @property
    def share(self) -> float:
        return self.count / self.rows if self.rows else 0.0

    def __str__(self) -> str:
        if not self.reasons:
            return ""
        parts = [f"{reason}: {len(found)} ({self.places(found)})" for reason, found in self.reasons.items()]
        return f"{self.count} of {self.rows} rows left out: {'; '.join(parts)}"

    def places(self, numbers: Sequence[int]) -> str:
        """'line 3' or 'lines 3, 8, 9, …'."""
        shown = ", ".join(map(str, numbers[:_SHOWN])) + (", …" if len(numbers) > _SHOWN else "")
        return f"{self.unit}{'s' if len(numbers) > 1 else ''} {shown}"


class Rows(Sequence[Sample]):
    """The questions in a table. `left_out` tells of rows that are none; `root` is the folder of pictures named by path.

    `follows_split` says whether other splits of the same path hold other rows. Raises `DataError` when the table lacks
    a column that every question needs.
    """

    def __init__(
        self,
        table: Table,
        fields: Fields,
        *,
        root: Path,
        layout: Layout = Layout(),  # noqa: B008
        held_out: HeldOut | None = None,
        follows_split: bool = True,
    ) -> None:
        self._table, self._fields, self._root, self._layout = table, fields, root.resolve(), layout
        self.follows_split = follows_split or held_out is not None
        self._kept = array("Q")
        self._names: dict[int, str] = {}  # of rows whose id is not their index
        ids: Counter[str] = Counter()
        reasons: dict[str, array[int]] = {}
        total = 0
        for index, row in enumerate(table.light_rows(*self._columns(), tails=held_out is not None)):
            total += 1
            reason = row if isinstance(row, str) else self._problem(row)
            if isinstance(row, str) or reason:
                reasons.setdefault(reason, array("Q")).append(table.number(index))
                continue
            given = _first_filled(row, fields.id)
            name = str(index) if given is None else str(given)
            ids[name] += 1
            if held_out is not None and not held_out.takes(self._key(row)):
                continue
            if ids[name] > 1:
                name = f"{name}#{ids[name]}"
            if name != str(index):
                self._names[index] = name
            self._kept.append(index)
        self._check_columns()
        self.left_out = LeftOut(total, reasons, table.unit)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = self._kept[index]
        row, fields = self._table.row(number), self._fields
        answer = _first_filled(row, fields.answer)
        sample = Sample(
            id=self._names.get(number, str(number)),
            question=str(_first_filled(row, fields.question)),
            images=tuple(self._picture(value) for value in _listed(_first_filled(row, fields.images))),
            answer=None if answer is None else str(answer),
            meta={column: row[column] for column in fields.meta if row.get(column) is not None},
        )
        return self._layout.complete(sample, row)

    def place(self, index: int) -> str:
        """Where a question stands in its file: 'line 12' or 'row 12'."""
        return f"{self._table.unit} {self._table.number(self._kept[index])}"

    @property
    def mapping(self) -> Mapping[str, str]:
        """The columns that each field is read from, in the order tried; fields without one are left out."""
        have = set(self._table.columns)
        wanted = {name: getattr(self._fields, name) for name in ("question", "images", "answer", "id", "meta")}
        found = {name: [c for c in columns if c in have] for name, columns in wanted.items()}
        return {name: ", ".join(columns) for name, columns in found.items() if columns}

    def _key(self, row: Mapping[str, Any]) -> bytes:
        """What decides on which side of a held-out share a row falls."""
        pictures = _listed(_first_filled(row, self._fields.images))
        if not pictures:
            return str(_first_filled(row, self._fields.question)).encode()
        first = pictures[0]
        if isinstance(first, Mapping):
            first = first.get("bytes") or first.get("path")
        return bytes(first) if isinstance(first, bytes) else str(first).encode()

    def _columns(self) -> tuple[list[str], list[str]]:
        have, fields = set(self._table.columns), self._fields
        wanted = dict.fromkeys([*fields.question, *fields.answer, *fields.id, *self._layout.columns])
        return [c for c in wanted if c in have], [c for c in fields.images if c in have]

    def _check_columns(self) -> None:
        have = list(self._table.columns)
        for name in ("question", "answer", "images"):
            wanted = getattr(self._fields, name)
            if have and wanted and not set(wanted) & set(have):
                looked = " or ".join(map(repr, wanted))
                raise DataError(f"there is no column {looked}; set fields.{name} to one of {', '.join(have)}")

    def _problem(self, row: Mapping[str, Any]) -> str:
        """Why a light row is no question; empty when it is one."""
        fields = self._fields
        for name, columns in (("question", fields.question), ("answer", fields.answer)):
            value = _first_filled(row, columns)
            if value is None:
                if columns:
                    return f"no {name}"
            elif isinstance(value, bool) or not isinstance(value, str | int | float):
                return f"the {name} is not a text"
            elif isinstance(value, float) and not math.isfinite(value):
                return f"the {name} is not a finite number"
            elif isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
                return f"the {name} holds half of a surrogate pair"
        pictures = _listed(_first_filled(row, fields.images))
        if fields.images and not pictures:
            return "no picture"
        return next(filter(None, map(self._picture_problem, pictures)), "") or self._layout.problem(row)

    def _picture_problem(self, value: Any) -> str:
        if isinstance(value, Unread):
            return ""
        try:
            source = self._picture(value)
        except ImageError as error:
            return str(error)
        return "a picture's file is missing" if isinstance(source, Path) and not source.is_file() else ""

    def _picture(self, value: Any) -> ImageSource:
        """A cell of a picture column as an image source. Raises `ImageError`, its text the same for all rows."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value or "\0" in value:
            raise ImageError("a picture is neither a path nor a data: URL nor bytes")
        if value.startswith("data:"):
            try:
                return decode_data_url(value)
            except ImageError:
                raise ImageError("a picture is not a valid data: URL") from None
        if "://" in value:
            raise ImageError("a picture is a URL, and nothing is fetched (download it, and name the file)")
        path = (self._root / value).resolve()
        if not path.is_relative_to(self._root):
            raise ImageError("a picture lies outside the data's folder (name the option root)")
        return path


def _first_filled(row: Mapping[str, Any], columns: Sequence[str]) -> Any:
    """The first of the columns that is there and not empty; None when none is."""
    for column in columns:
        value = row.get(column)
        empty = isinstance(value, Sequence | Mapping) and not (value.strip() if isinstance(value, str) else value)
        if value is not None and not empty:
            return value
    return None


def _listed(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)
