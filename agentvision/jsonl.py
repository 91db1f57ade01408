"""Append-only files of JSON objects, one a line, that survive being killed: the journal, metrics and events.

A record is on its way to the disk when `append` returns, and a record that the disk refuses leaves none of itself behind.
A killed writer can leave one torn line at the end; readers leave it out, and opening the file to write cuts it off.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agentvision._whole_file import whole_file
from agentvision.errors import RunError

log = logging.getLogger(__name__)


class JsonLines:
    """Writes one file; safe to share between threads, one process at a time. Raises `OSError` when it cannot be opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        cut_torn_line(path)
        self._file = path.open("ab", buffering=0)  # a buffer would be written again after a failed write

    @property
    def empty(self) -> bool:
        return self._file.tell() == 0

    def append(self, *records: Mapping[str, Any]) -> None:
        """Write records, all of them or none.

        Raises:
            RunError: the disk refuses (full, read-only); the file then ends with the last whole line.
        """
        with self._lock:
            start = self._file.tell()
            rest = memoryview(b"".join(json_line(record) for record in records))
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                os.truncate(self.path, start)
                raise RunError(f"{self.path}: cannot write: {error}; free space, then resume") from error

    def close(self) -> None:
        self._file.close()


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as one line of strict JSON in UTF-8; a lone surrogate, which UTF-8 lacks, is escaped."""
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def read_lines(path: Path, *, only: bytes = b"", warn: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of each whole line that holds the bytes `only`; a torn last line is left out.

    Raises:
        RunError: there is no such file, or a line of it is damaged.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise RunError(f"{path}: cannot read: {error}; name the directory of a run or evaluation") from error
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                if warn:
                    log.warning("%s:%d: skipped a torn last line of %d bytes", path, number, len(line))
                return
            if only not in line:
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise RunError(f"{path}:{number}: damaged line ({error}); cut it out to read the rest") from error
            if not isinstance(record, dict):
                raise RunError(f"{path}:{number}: expected a JSON object, got {record!r}")
            yield number, record


def keep_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Put these records in place of what the file holds, in one move."""
    with whole_file(path) as part:
        part.write_bytes(b"".join(json_line(record) for record in records))


def cut_torn_line(path: Path) -> None:
    """Cut off what follows a file's last line break: a line that a killed process did not finish."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = position = file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - 65536)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            if found >= 0:
                position = start + found + 1
                break
            position = start
        if position < end:
            log.warning("%s: cut off a torn last line of %d bytes", path, end - position)
            file.truncate(position)
