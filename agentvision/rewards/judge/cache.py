"""Verdicts that were paid for once: a dictionary in this process, and behind it a file that many processes share.

The file is sqlite in WAL mode. Reading it takes microseconds and waits for no writer, so it happens where it is asked
for; writing may wait for another process, so one thread does it, a batch a transaction. A file that is not a cache is
refused when the cache is made, before anything runs; whatever fails later costs money (verdicts are asked for again),
never the run. Only valid verdicts are kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import sqlite3
import threading
import time
import weakref
from contextlib import closing
from pathlib import Path
from typing import Any

from agentvision.errors import RecipeError
from agentvision.rewards.judge.verdict import Verdict

_log = logging.getLogger(__name__)

APPLICATION = 0x41564A56  # "AVJV"
SCHEMA = 1
RECENT = 65_536
"""Verdicts kept in memory."""
BUSY_S = 30.0
"""How long the writing thread waits for other processes."""
_READ_BUSY_S = 0.05

_CREATE = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, score REAL NOT NULL, asked_at INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA};
COMMIT;
"""


def cache_key(**everything: Any) -> bytes:
    """The name of a verdict: a hash of everything that goes into it, given as JSON values."""
    text = json.dumps(everything, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).digest()


class VerdictCache:
    """Scores by key. Safe in threads, and its file among processes of one machine (WAL needs shared memory).

    `path` None keeps them in memory alone. Raises `RecipeError` for a file that is something else; it is not touched.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._recent: dict[bytes, float] = {}
        self._lock = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._writer: _Writer | None = None
        self._usable = path is not None
        if path is not None:
            _check(path)

    def get(self, key: bytes) -> Verdict | None:
        """The verdict of this key, if there is one. Takes microseconds; never raises."""
        score = self._recent.get(key)
        if score is None and self._usable:
            with self._lock:
                score = self._read(key)
        return None if score is None else Verdict(score, "cached")

    def put(self, key: bytes, verdict: Verdict) -> None:
        """Keep a valid verdict; an invalid one is dropped. Returns at once; never raises."""
        if verdict.score is None:
            return
        with self._lock:
            self._recent[key] = verdict.score
            if len(self._recent) > RECENT:
                del self._recent[next(iter(self._recent))]
            if self._usable and self._writer is None and self.path is not None:
                self._writer = _Writer(self.path)
                weakref.finalize(self, self._writer.close)
            if self._usable and self._writer is not None:
                self._writer.jobs.put((key, verdict.score, int(time.time())))

    def close(self) -> None:
        """Write what is not written yet. The cache may be used again."""
        with self._lock:
            writer, self._writer = self._writer, None
            reader, self._reader = self._reader, None
        if writer is not None:
            writer.close()
        if reader is not None:
            reader.close()

    def _read(self, key: bytes) -> float | None:
        """From the file; called with the lock held."""
        assert self.path is not None
        try:
            if self._reader is None:
                if not self.path.exists():  # until somebody writes, there is nothing to read
                    return None
                self._reader = _connect(self.path, timeout_s=_READ_BUSY_S)
            row = self._reader.execute("SELECT score FROM verdicts WHERE key = ?", (key,)).fetchone()
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error) or "no such table" in str(error):
                return None  # asking again is cheaper than waiting; or its first writer is still at it
            return self._give_up(error)
        except (sqlite3.Error, OSError) as error:
            return self._give_up(error)
        score = row[0] if row else None
        return score if isinstance(score, float) and 0 <= score <= 1 else None

    def _give_up(self, error: Exception) -> None:
        self._usable = False
        _log.warning("the verdict cache %s cannot be read (%s); verdicts are kept in memory alone", self.path, error)


class _Writer:
    """A thread that writes what is put into its queue; batches of what has come together share a transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jobs: queue.SimpleQueue[tuple[bytes, float, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="verdict cache", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.jobs.put(None)
        if self._thread is not threading.current_thread():
            self._thread.join(BUSY_S + 5)

    def _run(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connect(self.path, timeout_s=BUSY_S)) as connection:
                connection.execute("PRAGMA synchronous = NORMAL")
                if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
                    connection.executescript(f"PRAGMA journal_mode = WAL; {_CREATE}")
                while batch := self._batch():
                    with connection:
                        connection.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?)", batch)
        except (sqlite3.Error, OSError) as error:
            _log.warning("the verdict cache %s cannot be written (%s); new verdicts are not kept", self.path, error)
            while self.jobs.get() is not None:
                pass

    def _batch(self) -> list[tuple[bytes, float, int]]:
        """What is waiting, at least one; empty at the end."""
        batch: list[tuple[bytes, float, int]] = []
        while not batch or not self.jobs.empty():
            job = self.jobs.get()
            if job is None:
                if batch:
                    self.jobs.put(None)
                break
            batch.append(job)
        return batch


def _connect(path: Path, *, timeout_s: float) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=timeout_s, check_same_thread=False)


def _check(path: Path) -> None:
    """Raise `RecipeError` for a file that is no verdict cache of this version. Nothing is created or changed."""
    if not path.exists():
        return
    fix = "choose another `cache:`, or move the file away"
    if not path.is_file():
        raise RecipeError(f"cache: {str(path)!r} is no file; {fix}")
    if path.stat().st_size == 0:
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
            connection.execute("BEGIN")  # another process may be making it: what is read is of one moment
            application, version = (
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    except sqlite3.OperationalError as error:
        _log.warning("the verdict cache %s cannot be looked into now (%s)", path, error)
        return
    except sqlite3.DatabaseError as error:
        raise RecipeError(f"cache: {str(path)!r} is no verdict cache, or is damaged ({error}); {fix}") from error
    if application != APPLICATION and tables:
        raise RecipeError(f"cache: {str(path)!r} is another program's database; {fix}")
    if application == APPLICATION and version != SCHEMA:
        raise RecipeError(f"cache: {str(path)!r} has schema {version}, and this version reads {SCHEMA}; {fix}")
