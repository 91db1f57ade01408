"""What keeps a run from hurting itself: signals that end it cleanly, numbers that are not finite, pictures that are bad.

The first SIGINT or SIGTERM asks: work that can be abandoned is cancelled, the loop saves a checkpoint and ends. A second
one ends the process where it stands. Bad steps (a loss or gradient that is not finite) are skipped before they
touch a weight; too many in a row end the run.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import Any

from agentvision.engine.ranks import ranks, told_by_all
from agentvision.engine.types import EngineError, EngineLost
from agentvision.errors import TrainingStopped
from agentvision.types import StopReason, Trajectory

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_OF_THE_ENGINE = tuple(f"{kind.__name__}:" for kind in (EngineError, EngineLost))
"""How the error of an episode begins whose engine could not be asked. (`BrokenNumbers` is another matter.)"""


class Interruption:
    """Catches the first SIGINT or SIGTERM while it is entered. Outside the main thread it catches nothing.

    `received` is the signal, None before one came.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._task: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._restore()

    @contextmanager
    def may_cancel(self) -> Iterator[None]:
        """Within, the signal cancels the current task: what it does there may be abandoned."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("may_cancel needs a running task")
        if self.received is not None:  # raised here: what never waits would not hear of a cancellation
            raise asyncio.CancelledError
        self._task = (asyncio.get_running_loop(), task)
        try:
            yield
        finally:
            self._task = None

    @contextmanager
    def may_cancel_alone(self) -> Iterator[None]:
        """The same for what all ranks do together: with several of them nothing is cancelled, and they ask `came_to_any`."""
        with self.may_cancel() if ranks() == 1 else nullcontext():
            yield

    def came_to_any(self) -> bool:
        """Whether it came to any rank, which all then know. All ranks ask together."""
        self.received = next(filter(None, (self.received, *told_by_all(self.received))), None)
        return self.received is not None

    def took(self, cancelled: asyncio.CancelledError) -> None:
        """The cancellation was the signal's, and is over. Raises it on where it was somebody else's."""
        if self.received is None:
            raise cancelled
        if (task := asyncio.current_task()) is not None:
            task.uncancel()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for each, handler in self._before.items():  # asyncio's would only cancel, once more
            is_asyncios = each is signal.SIGINT and callable(handler)
            signal.signal(each, signal.default_int_handler if is_asyncios else handler)
        if self._task is not None:
            loop, task = self._task
            loop.call_soon_threadsafe(self._cancel, task)

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        if self._task is not None and self._task[1] is task:  # else what could be abandoned is done
            task.cancel()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@contextmanager
def engine_stops(step: int) -> Iterator[None]:
    """An engine that fails within stops the run: its weights are good whatever becomes of it, and are kept."""
    try:
        yield
    except EngineError as error:
        raise TrainingStopped(f"step {step}: {error}") from error


class BadSteps:
    """Counts optimizer updates that were skipped. `skipped` is all of them, `in_a_row` those since the last good one."""

    def __init__(self, limit: int, *, skipped: int = 0, in_a_row: int = 0) -> None:
        self.limit = limit
        self.skipped = skipped
        self.in_a_row = in_a_row

    def good(self) -> None:
        self.in_a_row = 0

    def bad(self, what: str) -> None:
        """Record a skipped update. Raises `TrainingStopped` when it was one too many in a row."""
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            raise TrainingStopped(
                f"{self.in_a_row} updates in a row were not finite (last: {what}) and were skipped; the weights are those "
                "of the last good one. Lower trainer.lr in a new run (without model.lora its model.path may name a "
                "checkpoint's model/), or look at the rewards and log-probs in metrics.jsonl"
            )


class BadImages:
    """Counts questions whose images could not be read, which is found out when an episode begins. Such an episode is invalid;
    past `max_share` of those asked since the process began, the run stops. A few among few questions say nothing yet.
    """

    FEW = 10

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self.asked = self.bad = 0

    def count(self, bad: int, asked: int, first: str = "") -> None:
        """Add a step's questions; `first` names one that is bad. Raises `TrainingStopped` when there are too many."""
        self.asked, self.bad = self.asked + asked, self.bad + bad
        if self.bad >= self.FEW and self.bad > self._max_share * self.asked:
            seen = f" ({first})" if first else ""
            raise TrainingStopped(
                f"the images of {self.bad} of {self.asked} questions cannot be read, more than "
                f"data.max_bad_share={self._max_share!r} allows{seen}; `agentvision data check` lists them"
            )


def may_be_the_weights(trajectory: Trajectory) -> bool:
    """Whether its policy failed as one does whose weights are broken. Those of an engine that is gone are as good as before."""
    return trajectory.stop is StopReason.POLICY_ERROR and not trajectory.error.startswith(_OF_THE_ENGINE)


def why_invalid(trajectory: Trajectory) -> str:
    """Which question, and what became of its episode or its rewards."""
    reasons = [f"{name}: {score.reason}" for name, score in trajectory.scores.items() if not score.valid]
    error = trajectory.error.splitlines()[0] if trajectory.error else ""
    return f"{trajectory.sample.id}: {error or '; '.join(reasons) or trajectory.stop.value}"
