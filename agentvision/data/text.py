"""Tables in text files: JSON lines, CSV and TSV by an index of their rows' places, a JSON array in memory.

The index holds a number or two a row, so a file far larger than the memory can be read; a row is parsed again whenever it
is asked for. A file that is changed after it was opened is refused, not misread.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeAlias

from agentvision.errors import DataError

_BOM = b"\xef\xbb\xbf"
_MAX_CELL = 32 * 1024 * 1024
"""Characters of a CSV cell at most: a data: URL is longer than the csv module's default."""

Row: TypeAlias = Mapping[str, Any] | str
"""A row, or the reason why it is none."""


class _IndexedText(ABC):
    """A text file whose rows begin at known places. The index is made by the light pass."""

    unit: ClassVar = "line"

    def __init__(self, path: Path) -> None:
        self._path, self._stamp = path, _stamp(path)
        self.columns: list[str] = []
        self._starts, self._lines = array("Q"), array("Q")

    def light_rows(self, columns: Sequence[str], images: Sequence[str], *, tails: bool = False) -> Iterator[Row]:
        """Every row whole: text has no part that could be left on disk."""
        self._starts, self._lines = array("Q"), array("Q")
        try:
            with self._path.open("rb") as file:
                for start, line, row in self._scan(file):
                    self._starts.append(start)
                    self._lines.append(line)
                    yield row
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"cannot be read ({type(error).__name__}): {error}") from error

    def row(self, index: int) -> Mapping[str, Any]:
        if _stamp(self._path) != self._stamp:
            raise DataError(f"{str(self._path)!r} was changed while it was in use; open it again")
        with self._path.open("rb") as file:
            file.seek(self._starts[index])
            row = self._parse(file)
        if isinstance(row, str):
            raise ValueError(f"row {index} is none: {row}")
        return row

    def number(self, index: int) -> int:
        return self._lines[index]

    @abstractmethod
    def _scan(self, file: BinaryIO) -> Iterator[tuple[int, int, Row]]:
        """(place in bytes, line from 1, row) of every row; fills `columns`."""

    @abstractmethod
    def _parse(self, file: BinaryIO) -> Row:
        """The row that begins where the file stands."""


class JsonlFile(_IndexedText):
    """An object a line; empty lines are none."""

    def _scan(self, file: BinaryIO) -> Iterator[tuple[int, int, Row]]:
        columns: dict[str, None] = {}
        start = 0
        for number, line in enumerate(file, start=1):
            if line.removeprefix(_BOM).strip():
                row = _json_row(line)
                if not isinstance(row, str):
                    columns |= dict.fromkeys(row)
                yield start, number, row
            start += len(line)
        self.columns = list(columns)

    def _parse(self, file: BinaryIO) -> Row:
        return _json_row(file.readline())


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line.removeprefix(_BOM).decode("utf-8"))
    except (ValueError, RecursionError):
        return "not a line of JSON"
    return row if isinstance(row, dict) else "not a JSON object"


class CsvFile(_IndexedText):
    """Cells between commas (tabs in a .tsv), named by the first row; a cell between quotes may span lines."""

    def _scan(self, file: BinaryIO) -> Iterator[tuple[int, int, Row]]:
        feed = _Feed(file)
        reader = self._reader(feed)
        self.columns = next(reader, [])
        while True:
            start, line = feed.place, reader.line_num + 1
            cells = next(reader, None)
            if cells is None:
                return
            if cells:
                yield start, line, self._row(cells)

    def _parse(self, file: BinaryIO) -> Row:
        return self._row(next(self._reader(_Feed(file))))

    def _reader(self, feed: _Feed) -> Any:
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL))
        return csv.reader(feed, strict=True, delimiter="\t" if self._path.suffix == ".tsv" else ",")

    def _row(self, cells: Sequence[str]) -> Row:
        if len(cells) > len(self.columns):
            return "more cells than the header has"
        return dict.fromkeys(self.columns) | dict(zip(self.columns, cells, strict=False))


class _Feed(Iterator[str]):
    """A file's lines as text; `place` is the byte after the last one that was taken."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.place = file, file.tell()

    def __next__(self) -> str:
        line = next(self._file)
        first, self.place = self.place == 0, self.place + len(line)
        return line.decode("utf-8-sig" if first else "utf-8")


class JsonFile:
    """An array of objects, held in memory."""

    unit: ClassVar = "row"

    def __init__(self, path: Path) -> None:
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{str(path)!r} cannot be read ({type(error).__name__}): {error}") from error
        if not isinstance(rows, list):
            raise DataError(f"{str(path)!r} holds no JSON array of objects; one object a line goes by .jsonl")
        self._rows: list[Any] = rows
        self.columns = list(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))

    def light_rows(self, columns: Sequence[str], images: Sequence[str], *, tails: bool = False) -> Iterator[Row]:
        return (row if isinstance(row, dict) else "not a JSON object" for row in self._rows)

    def row(self, index: int) -> Mapping[str, Any]:
        return self._rows[index]

    def number(self, index: int) -> int:
        return index + 1


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
