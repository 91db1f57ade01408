"""Rows of a table as questions.

A recipe's `data.fields` says which column holds what. Every row is looked at once, without its pictures' bytes: one
that cannot become a question is left out, counted by its reason, and reported; nothing takes its place. What is kept is
made into a `Sample` when it is asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agentvision.errors import DataError, ImageError
from agentvision.images import decode_data_url
from agentvision.recipe.schema import Fields
from agentvision.types import ImageSource, Sample

UNREAD = True
"""In a light row: a picture is there, and was not read."""


class Table(Protocol):
    """What a file format gives: its columns, a light pass over all rows, and one whole row at a time."""

    @property
    def columns(self) -> Sequence[str]: ...

    def light_rows(self, columns: Sequence[str], images: Sequence[str]) -> Iterator[Mapping[str, Any] | str]:
        """Each row's values of both kinds of columns, or the reason why it is no row. A picture may be `UNREAD`."""
        ...

    def row(self, index: int) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that are no questions: of how many, and for each reason their count and the first of them, from 1."""

    rows: int = 0
    reasons: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(count for count, _ in self.reasons.values())

    def __str__(self) -> str:
        if not self.reasons:
            return ""
        parts = [f"{reason}: {count} (first in row {first})" for reason, (count, first) in self.reasons.items()]
        return f"{self.count} of {self.rows} rows left out: {'; '.join(parts)}"


class Rows(Sequence[Sample]):
    """The questions in a table. `left_out` tells of rows that are none; `root` is the folder of pictures named by path.

    Raises `DataError` when the table lacks a column that every question needs.
    """

    def __init__(self, table: Table, fields: Fields, *, root: Path) -> None:
        self._table, self._fields, self._root = table, fields, root.resolve()
        self._check_columns()
        self._kept: list[tuple[int, str]] = []  # (row, id)
        ids: Counter[str] = Counter()
        reasons: dict[str, tuple[int, int]] = {}
        total = 0
        for index, row in enumerate(table.light_rows(*self._columns())):
            total += 1
            reason = row if isinstance(row, str) else self._problem(row)
            if isinstance(row, str) or reason:
                count, first = reasons.get(reason, (0, index + 1))
                reasons[reason] = (count + 1, first)
                continue
            given = _first_filled(row, fields.id)
            name = str(index) if given is None else str(given)
            ids[name] += 1
            self._kept.append((index, name if ids[name] == 1 else f"{name}#{ids[name]}"))
        self.left_out = LeftOut(total, reasons)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number, name = self._kept[index]
        row, fields = self._table.row(number), self._fields
        answer = _first_filled(row, fields.answer)
        return Sample(
            id=name,
            question=str(_first_filled(row, fields.question)),
            images=tuple(self._picture(value) for value in _listed(_first_filled(row, fields.images))),
            answer=None if answer is None else str(answer),
            meta={column: row[column] for column in fields.meta if column in row},
        )

    def _columns(self) -> tuple[list[str], list[str]]:
        have, fields = set(self._table.columns), self._fields
        wanted = dict.fromkeys([*fields.question, *fields.answer, *fields.id])
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
        return next(filter(None, map(self._picture_problem, pictures)), "")

    def _picture_problem(self, value: Any) -> str:
        if value is UNREAD:
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
