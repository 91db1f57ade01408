"""The cache keeps what was paid for, shares it among processes, and never costs a run."""

import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from functools import partial

import pytest

from agentvision.errors import RecipeError
from agentvision.rewards.judge import cache as module
from agentvision.rewards.judge.cache import VerdictCache, cache_key
from agentvision.rewards.judge.verdict import Verdict

RIGHT, WRONG = Verdict(1.0), Verdict(0.0)


def key(n):
    return cache_key(n=n)


def test_a_verdict_is_found_again_here_and_after_reopening(tmp_path):
    path = tmp_path / "deep" / "verdicts.sqlite"
    cache = VerdictCache(path)
    assert cache.get(key(1)) is None and not path.exists(), "nothing is made before something is kept"
    cache.put(key(1), RIGHT)
    cache.put(key(2), Verdict(0.25))
    assert cache.get(key(1)).score == 1.0, "before it is written"
    cache.close()
    again = VerdictCache(path)
    assert [getattr(again.get(key(n)), "score", None) for n in (1, 2, 3)] == [1.0, 0.25, None]
    again.put(key(3), WRONG)
    again.close()
    cache.put(key(4), WRONG)  # closed, and used again
    assert cache.get(key(3)).score == 0.0
    cache.close()
    assert VerdictCache(path).get(key(4)).score == 0.0


@pytest.mark.parametrize("where", ["file", "memory"])
def test_what_is_invalid_is_not_kept(tmp_path, where):
    cache = VerdictCache(tmp_path / "v.sqlite" if where == "file" else None)
    cache.put(key(1), Verdict(None, "no reply"))
    assert cache.get(key(1)) is None
    cache.close()
    assert VerdictCache(cache.path).get(key(1)) is None


def test_every_part_of_a_key_counts():
    base = {
        "model": {"model": "a", "api_base": None},
        "question": "q",
        "truths": ("a", "b"),
        "answer": "x",
        "sample": 0,
    }
    changes = [
        {"model": {"model": "a", "api_base": "http://other"}},
        {"model": {"model": "a", "api_base": None, "temperature": 0.1}},
        {"question": "Q"},
        {"truths": ("b", "a")},
        {"truths": ("a,b",)},
        {"answer": "x "},
        {"answer": "\ud800"},
        {"sample": 1},
    ]
    keys = [cache_key(**base), *(cache_key(**(base | change)) for change in changes)]
    assert len(set(keys)) == len(keys)
    assert cache_key(**base) == cache_key(**dict(reversed(base.items())))


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "RECENT", 10)
    cache = VerdictCache()
    for n in range(100):
        cache.put(key(n), RIGHT)
    assert [n for n in range(100) if cache.get(key(n))] == list(range(90, 100))


# --- files that are something else ----------------------------------------------------------------------------------


def foreign(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")


def newer(path):
    cache = VerdictCache(path)
    cache.put(key(1), RIGHT)
    cache.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.write_text("name: visionthink\n" * 100), "no verdict cache, or is damaged"),
        (foreign, "another program's database"),
        (newer, "schema 99, and this version reads 1"),
        (lambda path: path.mkdir(), "is no file"),
    ],
)
def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path, make, what):
    path = tmp_path / "v.sqlite"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(RecipeError, match=rf"cache: .*v\.sqlite.*{what}.*choose another"):
        VerdictCache(path)
    assert before == (path.read_bytes() if path.is_file() else None)


def test_an_empty_file_becomes_a_cache(tmp_path):
    path = tmp_path / "v.sqlite"
    path.touch()
    cache = VerdictCache(path)
    assert cache.get(key(1)) is None
    cache.put(key(1), RIGHT)
    cache.close()
    assert VerdictCache(path).get(key(1)).score == 1.0


# --- what breaks while a run goes on --------------------------------------------------------------------------------


def test_a_file_that_breaks_costs_its_verdicts_and_nothing_else(tmp_path, caplog):
    path = tmp_path / "v.sqlite"
    newer(path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    cache = VerdictCache(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    assert cache.get(key(1)) is None
    cache.put(key(2), RIGHT)
    assert cache.get(key(2)).score == 1.0, "memory goes on"
    cache.close()
    assert "cannot be read" in caplog.text


def test_a_place_that_cannot_be_written_costs_no_run(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = VerdictCache(tmp_path / "file" / "v.sqlite")  # its folder cannot be made, not even by root
    cache.put(key(1), RIGHT)
    assert cache.get(key(1)).score == 1.0
    cache.close()
    assert "cannot be written" in caplog.text


def test_reading_does_not_wait_for_a_writer(tmp_path):
    path = tmp_path / "v.sqlite"
    cache = VerdictCache(path)
    cache.put(key(1), RIGHT)
    cache.close()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        reading = VerdictCache(path)
        began = time.perf_counter()
        assert reading.get(key(1)).score == 1.0
        reading.put(key(2), WRONG)
        assert reading.get(key(2)).score == 0.0
        assert time.perf_counter() - began < 20, "the writer holds its lock all the while"
        other.execute("COMMIT")
        reading.close()
    assert VerdictCache(path).get(key(2)).score == 0.0


PROCESS = """
    import sys
    from pathlib import Path
    from agentvision.rewards.judge.cache import VerdictCache, cache_key
    from agentvision.rewards.judge.verdict import Verdict

    cache, me = VerdictCache(Path(sys.argv[1])), sys.argv[2]
    for n in range(200):
        for name in (n, f"{me}-{n}"):
            assert cache.get(cache_key(n=name)) in (None, Verdict(n % 2.0, "cached"))
            cache.put(cache_key(n=name), Verdict(n % 2.0))
    cache.close()
"""


def test_many_processes_share_one_file_from_its_first_moment(tmp_path):
    path, program = tmp_path / "v.sqlite", tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROCESS))
    processes = [
        subprocess.Popen([sys.executable, program, path, str(n)], stderr=subprocess.PIPE, text=True) for n in range(4)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert errors == [""] * 4 and [process.returncode for process in processes] == [0] * 4
    cache = VerdictCache(path)
    names = [*range(200), *(f"{me}-{n}" for me in range(4) for n in range(200))]
    assert all(cache.get(key(name)) for name in names), "a verdict was lost"
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM verdicts").fetchone() == (1000,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_threads_share_one_cache(tmp_path):
    cache, wrong = VerdictCache(tmp_path / "v.sqlite"), []

    def work(me):
        for n in range(300):
            cache.put(key((me, n)), Verdict(n % 2.0))
            if cache.get(key((me, n))) != Verdict(n % 2.0, "cached") or cache.get(key((me, -n - 1))) is not None:
                wrong.append((me, n))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.close()
    assert not wrong
    again = VerdictCache(tmp_path / "v.sqlite")
    assert all(again.get(key((me, n))) for me in range(8) for n in range(300))


def test_a_file_that_another_process_makes_in_this_moment_is_no_strangers(tmp_path, monkeypatch):
    path = tmp_path / "v.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")  # it is there, and empty

    class Late(sqlite3.Connection):
        def execute(self, sql, *values):
            done = super().execute(sql, *values)
            if "user_version" in sql:
                with closing(real(path)) as other:
                    other.executescript(module._CREATE)
            return done

    real = sqlite3.connect
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", partial(real, factory=Late))
        VerdictCache(path)
    VerdictCache(path)
