"""Where blocking tools run: daemon threads, bounded, and not used up by tools that hang.

A call's deadline counts from when it starts, not from when it queues. A thread cannot be stopped, so a call that misses
its deadline is abandoned: its place in the pool goes to the next call at once, and the thread ends when its function
returns, if ever. One tool may leave `MAX_ABANDONED` such threads behind; until some return, its further calls fail.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

SIZE = 32
"""Calls that run at the same time."""
MAX_ABANDONED = 32
"""Threads that the calls of one tool may leave hanging."""


class DeadlinePassed(Exception):
    """The call did not finish in time; the message says so."""


async def run_async(coroutine: Coroutine[Any, Any, Any], *, name: str, timeout_s: float) -> Any:
    """Await a coroutine for at most `timeout_s`, even if it ignores its cancellation. Raises `DeadlinePassed`."""
    task = asyncio.ensure_future(_contained(coroutine))
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.cancel()
        task.add_done_callback(_ignore)
        raise DeadlinePassed(f"The tool {name} did not finish within {timeout_s:g} s.")
    return task.result()


async def run_blocking(function: Callable[[], Any], *, name: str, timeout_s: float) -> Any:
    """Run a function in a thread and await it for at most `timeout_s`. Raises `DeadlinePassed`."""
    loop = asyncio.get_running_loop()
    job = _Job(name, function, loop, loop.create_future(), loop.create_future())
    _POOL.submit(job)
    try:
        await job.started
        done, _ = await asyncio.wait({job.outcome}, timeout=timeout_s)
    except asyncio.CancelledError:
        _POOL.abandon(job)
        raise
    if not done:
        _POOL.abandon(job)
        raise DeadlinePassed(f"The tool {name} did not finish within {timeout_s:g} s.")
    return job.outcome.result()


async def _contained(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """`sys.exit()` in a tool must not end the event loop."""
    try:
        return await coroutine
    except SystemExit as error:
        raise RuntimeError(f"raised {error!r}") from error


def _ignore(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # read, so that asyncio does not report it as lost


@dataclass(eq=False, slots=True)
class _Job:
    name: str
    function: Callable[[], Any]
    loop: asyncio.AbstractEventLoop
    started: asyncio.Future[None]
    outcome: asyncio.Future[Any]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    abandoned: bool = False
    finished: bool = False

    def run(self) -> None:
        self._post(self.started, None, None)
        try:
            value = self.context.run(self.function)
        except (SystemExit, KeyboardInterrupt, StopIteration) as error:
            self._post(self.outcome, None, RuntimeError(f"raised {error!r}"))
        except BaseException as error:
            self._post(self.outcome, None, error)
        else:
            self._post(self.outcome, value, None)

    def _post(self, future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
        def settle() -> None:
            if future.cancelled() or self.abandoned:
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(settle)


class _Pool:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._live = 0
        self._abandoned: Counter[str] = Counter()

    def submit(self, job: _Job) -> None:
        with self._lock:
            if self._abandoned[job.name] >= MAX_ABANDONED:
                raise DeadlinePassed(f"The tool {job.name} is not available: earlier calls of it still hang.")
            self._queue.append(job)
            self._staff()

    def abandon(self, job: _Job) -> None:
        with self._lock:
            job.abandoned = True
            if job in self._queue:
                self._queue.remove(job)
            elif not job.finished:
                self._abandoned[job.name] += 1
                self._live -= 1
                self._staff()

    def _staff(self) -> None:
        """Give the queue's head a thread if there is room; called with the lock held."""
        if self._queue and self._live < SIZE:
            self._live += 1
            job = self._queue.popleft()
            threading.Thread(target=self._work, args=(job,), name=f"tool-{job.name}", daemon=True).start()

    def _work(self, job: _Job) -> None:
        while True:
            job.run()
            with self._lock:
                job.finished = True
                if job.abandoned:  # its place was given away
                    self._abandoned[job.name] -= 1
                    return
                if not self._queue:
                    self._live -= 1
                    return
                job = self._queue.popleft()


_POOL = _Pool()
