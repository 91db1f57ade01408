"""Are two mathematical texts equal? Asked of math-verify in worker processes, each answer under a deadline.

math-verify keeps time by `signal.alarm`, which works on the main thread alone, and a computer algebra system can hang
beyond the reach of any signal handler. So each question goes to a process of its own program (nothing is forked from
one that holds threads or a GPU, nothing of the caller's main module is imported again), which ends and replaces what
misses its deadline. Workers start when first needed and end with their pool.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, cast

from agentvision.rewards.grading import canonical, unwrap

MAX_CHARS = 500
"""A longer text is not taken for a mathematical answer."""

GRACE_S = 2.0

STARTUP_S = 120.0
"""How long a worker may take to import its libraries (about a second on an idle machine)."""

_MATHS = re.compile(
    r"[\\^√π=]|sqrt"  # LaTeX, powers, roots, equations
    r"|\b[0-9]*[a-z] ?[-+*/] ?[0-9]|\b[0-9]+ ?\*? ?[a-z] ?[-+*/] ?[a-z0-9]|\b[a-z] ?[-+*/] ?[a-z]\b"  # 2x + 3
    r"|^[(\[{](?!.*[a-z]{2})[^()\[\]{}]*,[^()\[\]{}]*[)\]}]$",  # (1, 2)
    re.IGNORECASE,
)


class MathsError(Exception):
    """The comparison gave no verdict: its deadline passed, its worker died, or the libraries failed."""


def looks_like_maths(text: str) -> bool:
    """Whether a ground truth is a formula, which math-verify should see; words, dates and plain numbers are none."""
    return len(text) <= MAX_CHARS and _MATHS.search(canonical(unwrap(text))) is not None


@dataclass
class MathsPool:
    """Worker processes that compare mathematical texts. Safe in threads and across event loops."""

    workers: int = 2
    timeout_s: float = 5.0
    _slots: queue.LifoQueue[_Worker | None] = field(init=False, repr=False)
    _started: list[_Worker] = field(init=False, repr=False)
    _threads: ThreadPoolExecutor = field(init=False, repr=False)  # its own: waiting must not use up the tools' threads

    def __post_init__(self) -> None:
        if self.workers < 1 or not self.timeout_s > 0:
            raise ValueError(f"workers={self.workers!r}, timeout_s={self.timeout_s!r}: both must be above 0")
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="maths")
        self._slots = queue.LifoQueue()
        self._started = []
        for _ in range(self.workers):
            self._slots.put(None)
        weakref.finalize(self, _end_all, self._started)

    async def equal(self, answer: str, truth: str, *, wait_s: float = 100.0) -> bool:
        """Whether the two are equal. Raises `MathsError` when there is no verdict, or none within `wait_s`."""
        answer, truth = _latex(answer), _latex(truth)
        if not answer or not truth or max(len(answer), len(truth)) > MAX_CHARS:
            return False
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, answer, truth)
        except TimeoutError:
            raise MathsError(f"maths: no worker was free within {wait_s:g} s") from None

    def close(self) -> None:
        """End all workers; later questions start new ones."""
        _end_all(self._started)

    def _ask(self, answer: str, truth: str) -> bool:
        worker = self._slots.get()  # there are as many slots as threads
        try:
            if worker is None or not worker.alive:
                worker = None  # should the next line fail, its slot stays usable
                worker = _Worker(self.timeout_s)
                self._started.append(worker)
            return worker.ask(answer, truth)
        finally:
            if worker is not None and not worker.alive:
                with suppress(ValueError):  # `close` may have taken it out
                    self._started.remove(worker)
                worker = None
            self._slots.put(worker)


class _Worker:
    """One process, asked one question at a time."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.alive = True
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agentvision.rewards._maths_worker", str(timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            start_new_session=True,  # killed with its child; and Ctrl-C, which the trainer handles, is not for it
        )
        self._ready = False

    def ask(self, answer: str, truth: str) -> bool:
        """Blocks until the verdict or the deadline, after which the process is dead."""
        if not self._ready:
            self._exchange("", STARTUP_S)
            self._ready = True
        # The worker keeps the deadline; this one is for a worker that does not.
        line = self._exchange(json.dumps({"answer": answer, "truth": truth}) + "\n", self.timeout_s + GRACE_S)
        reply = json.loads(line)
        if "error" in reply:
            raise MathsError(f"maths: {reply['error']}")
        return bool(reply["equal"])

    def end(self) -> None:
        self.alive = False
        self._kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError, ValueError):  # what was buffered for a dead process cannot be written
                cast("IO[str]", stream).close()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def _exchange(self, line: str, timeout_s: float) -> str:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            stdin, stdout = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
            stdin.write(line)
            stdin.flush()
            reply = stdout.readline()
        except (OSError, ValueError):
            reply = ""
        finally:
            timer.cancel()
            timer.join()  # it may be killing at this moment: then this worker answers no second question
        if late.is_set() or not reply:
            self.end()
            why = f"deadline: more than {timeout_s:g} s" if late.is_set() else "the worker died"
            raise MathsError(f"maths: {why}")
        return reply


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()
    workers.clear()


def _latex(text: str) -> str:
    """One formula for math-verify: the whole answer, so that a list of candidates is not searched for a right one."""
    text = unwrap(text).replace("$", " ").replace("**", "^").strip()
    return f"${text}$" if text else ""
