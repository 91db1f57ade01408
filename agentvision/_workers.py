"""Where blocking work runs: daemon threads, bounded, and not used up by calls that hang.

A call's deadline counts from when it starts, not from when it queues. A thread cannot be stopped, so a call that
misses its deadline is abandoned: its place in the pool goes to the next call at once, and the thread ends when its
function returns, if ever. Calls of one `name` may leave `MAX_ABANDONED` such threads behind; until some of them return,
further ones fail.

Async plug-ins run on the event loop itself, where one that computes or waits without `await` holds up every episode, its
own deadline included. It cannot be cut off from outside, but once it lets go it is named in the log. What may block
should be a plain function: those run here.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import threading
import time
import types
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

log = logging.getLogger(__name__)

T = TypeVar("T")

SIZE = 32
"""Calls that run at the same time."""
BLOCKING_S = 1.0
"""How long a plug-in may keep the event loop without being named in the log."""
MAX_ABANDONED = 32
"""Threads that the calls of one name may leave hanging."""
_HEARD_S = 0.5
"""How late Ctrl-C may be heard. A signal just before a thread goes to sleep does not wake it, so none sleeps for good."""
_LEFT_S = 5.0
"""How long what is cancelled at the end of a loop may take to end."""
_MOST_COMING = 8
"""Threads that are on their way to the queue at the same time. With one alone, each waits for the interpreter anew while the
event loop is busy, and calls that block start one after another; with all, a thousand short calls wake them for nothing."""


class DeadlinePassed(Exception):
    """The call did not finish in time; the message says so."""


def run_sync(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end from code that is not one; inside a running event loop (a notebook's) it blocks that.

    Where Ctrl-C raises `KeyboardInterrupt`, the coroutine is cancelled by it, and ends before that is raised here.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(work)
    begun: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = Future()

    async def told() -> T:
        task = asyncio.current_task()
        assert task is not None
        begun.set_result((asyncio.get_running_loop(), task))
        if interrupted.is_set():
            raise asyncio.CancelledError
        return await work()

    interrupted = threading.Event()
    with ThreadPoolExecutor(1, "agentvision sync") as pool:
        try:
            outcome = pool.submit(lambda: _run(told))
            while not wait([outcome], timeout=_HEARD_S).done:
                pass
            return outcome.result()
        except KeyboardInterrupt:  # here: what runs there would hear nothing of it, and is waited for
            interrupted.set()  # before the look: one of the two sees the other
            if begun.done():
                loop, task = begun.result()
                with suppress(RuntimeError):  # it has just ended
                    loop.call_soon_threadsafe(task.cancel)
            raise


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`asyncio.run`, which does not wait for ever for what ignores its cancellation."""
    with asyncio.Runner() as runner:
        try:
            return runner.run(work())
        finally:
            loop = runner.get_loop()
            if tasks := asyncio.all_tasks(loop):
                for task in tasks:
                    task.cancel()
                _, left = loop.run_until_complete(asyncio.wait(tasks, timeout=_LEFT_S))
                for task in left:
                    log.warning("%s ignores its cancellation and is left behind", task.get_name())
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it was said
                    asyncio.tasks._unregister_task(task)  # the runner waits for all that are known


@contextmanager
def ctrl_c_raises() -> Iterator[None]:
    """Within, Ctrl-C raises `KeyboardInterrupt` at once, from a coroutine too: for what takes long and awaits nothing.

    asyncio only cancels the coroutine, which hears of it at its next `await`. Outside the main thread nothing is changed.
    """
    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if _is_cancelled():  # by one that came just before
            raise asyncio.CancelledError
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_cancelled() -> bool:
    """Whether the coroutine that this is called from is to end at its next `await`."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # there is none
        return False
    return task is not None and task.cancelling() > 0


async def run_async(function: Callable[[], Coroutine[Any, Any, Any]], *, name: str, timeout_s: float) -> Any:
    """Await a coroutine for at most `timeout_s`, even if it ignores its cancellation. Raises `DeadlinePassed`."""
    task = asyncio.create_task(_contained(_watched(function(), name)), name=name)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            raise DeadlinePassed(f"{name} did not finish within {timeout_s:g} s.")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_ignore)
        del (
            task
        )  # an error holds this frame, and the task the error: what it was called with would wait for a collection


async def run_blocking(function: Callable[[], Any], *, name: str, timeout_s: float) -> Any:
    """Run a function in a thread and await it for at most `timeout_s`. Raises `DeadlinePassed`."""
    loop = asyncio.get_running_loop()
    if (desk := _DESKS.get(loop)) is None:
        desk = _DESKS[loop] = _Desk()
    job = _Job(name, function, timeout_s, loop, desk, loop.create_future())
    _POOL.submit(job)
    desk.await_(job)
    try:
        return await job.outcome
    except asyncio.CancelledError:
        _POOL.abandon(job)
        raise
    finally:
        desk.leave(job)
        del job  # as in `run_async`


_blockers: set[str] = set()
"""Those that were named already."""


@types.coroutine
def _watched(coroutine: Coroutine[Any, Any, T], name: str) -> Generator[Any, Any, T]:
    """Await a coroutine; a stretch of it that keeps the event loop for longer than `BLOCKING_S` is logged, once a name."""
    resume: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        began = time.monotonic()
        try:
            waited_for = resume(value)
        except StopIteration as stop:
            return stop.value
        finally:
            value = None  # an error, where it holds this frame
            if (held := time.monotonic() - began) > BLOCKING_S and name not in _blockers:
                _blockers.add(name)
                log.warning(
                    "%s kept the event loop for %.1f s without `await`: every episode stood still, and its own deadline "
                    "could not end it; make it a plain function (those run in threads), or await what takes long",
                    name,
                    held,
                )
        try:
            resume, value = coroutine.send, (yield waited_for)
        except GeneratorExit:  # it is left behind
            coroutine.close()
            raise
        except BaseException as error:
            resume, value = coroutine.throw, error


async def _contained(coroutine: Awaitable[Any]) -> Any:
    """`sys.exit()` in user code must not end the event loop."""
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
    timeout_s: float
    loop: asyncio.AbstractEventLoop
    desk: _Desk
    outcome: asyncio.Future[Any]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    started: float | None = None
    abandoned: bool = False
    finished: bool = False
    value: Any = None
    error: BaseException | None = None

    def run(self) -> None:
        self.started = time.monotonic()
        try:
            self.value = self.context.run(self.function)
        except (SystemExit, KeyboardInterrupt, StopIteration) as error:
            self.error = RuntimeError(f"raised {error!r}")
        except BaseException as error:
            self.error = error
        self.desk.hand_in(self)
        del self  # as in `run_async`

    def settle(self) -> None:
        """Tell who waits, on its event loop."""
        if self.abandoned or self.outcome.done():
            return
        if self.error is not None:
            self.outcome.set_exception(self.error)
        else:
            self.outcome.set_result(self.value)

    def due(self, now: float) -> float:
        """When it has to be done at the earliest: its time counts from its start."""
        return (now if self.started is None else self.started) + self.timeout_s


class _Desk:
    """One event loop's: the jobs that it awaits, one clock for all of them, and what threads have handed in.

    The loop is woken once for all that was handed in before it looks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._done: list[_Job] = []
        # The loop's own.
        self._awaited: set[_Job] = set()
        self._alarm: asyncio.TimerHandle | None = None

    def await_(self, job: _Job) -> None:
        self._awaited.add(job)
        due = job.due(now := time.monotonic())
        if self._alarm is None or due < self._alarm.when():
            self._set_alarm(job.loop, due - now)

    def leave(self, job: _Job) -> None:
        self._awaited.discard(job)
        if not self._awaited and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def hand_in(self, job: _Job) -> None:
        """Called by threads."""
        with self._lock:
            self._done.append(job)
            first = len(self._done) == 1
        if first:
            try:
                job.loop.call_soon_threadsafe(self._settle)
            except RuntimeError:  # the loop is closed: nobody waits any more
                with self._lock:
                    self._done.clear()

    def _settle(self) -> None:
        with self._lock:
            done, self._done = self._done, []
        for job in done:
            job.settle()

    def _set_alarm(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = loop.call_later(seconds, self._look_at_the_clock, loop)

    def _look_at_the_clock(self, loop: asyncio.AbstractEventLoop) -> None:
        now = time.monotonic()
        waiting = [job for job in self._awaited if not job.outcome.done()]
        for job in waiting:
            if job.started is not None and job.due(now) <= now:
                _POOL.abandon(job)
                job.outcome.set_exception(DeadlinePassed(f"{job.name} did not finish within {job.timeout_s:g} s."))
        self._alarm = None
        if left := [job.due(now) for job in waiting if not job.outcome.done()]:
            self._set_alarm(loop, min(left) - now)


_DESKS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Desk] = WeakKeyDictionary()


class _Pool:
    """Threads that wait for jobs; more are started while all are busy, up to `SIZE`.

    A few at a time are on their way to the queue (`_MOST_COMING`): each that has taken a job while others wait sends for
    the next.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._live = self._idle = self._coming = 0  # who is sent for is not idle
        self._abandoned: Counter[str] = Counter()

    def submit(self, job: _Job) -> None:
        with self._changed:
            if self._abandoned[job.name] >= MAX_ABANDONED:
                raise DeadlinePassed(f"{job.name} is not available: earlier calls of it still hang.")
            self._queue.append(job)
            self._send_for_some()

    def abandon(self, job: _Job) -> None:
        with self._changed:
            job.abandoned = True
            if job in self._queue:
                self._queue.remove(job)
            elif not job.finished:
                self._abandoned[job.name] += 1
                self._live -= 1
                self._send_for_some()

    def _send_for_some(self) -> None:
        """See that the queue is worked on; called with the lock held."""
        while self._coming < min(len(self._queue), _MOST_COMING):
            if self._idle:
                self._idle -= 1
                self._changed.notify()
            elif self._live < SIZE:
                threading.Thread(target=self._work, name="agentvision worker", daemon=True).start()
                self._live += 1
            else:
                return
            self._coming += 1

    def _work(self) -> None:
        with self._changed:
            self._coming -= 1
        while True:
            with self._changed:
                while not self._queue:
                    self._idle += 1
                    self._changed.wait()
                    self._coming -= 1
                job = self._queue.popleft()
                self._send_for_some()
            job.run()
            with self._changed:
                job.finished = True
                if job.abandoned:  # its place was given away
                    self._abandoned[job.name] -= 1
                    return
            del job  # an idle thread should keep no images alive


_POOL = _Pool()
