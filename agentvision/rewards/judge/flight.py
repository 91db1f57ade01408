"""Single flight: who asks what is being asked already waits for that answer.

The work runs in a task of its own, so that a caller who is cancelled takes nobody's answer away; when the last one who
waits is gone, the work is cancelled too. Tasks belong to an event loop, so callers on another loop ask for themselves.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Calls by key; those of one key that overlap are one. Safe in threads and on several event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: weakref.WeakKeyDictionary[Any, dict[Hashable, _Flight[T]]] = weakref.WeakKeyDictionary()

    async def __call__(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """(its result, whether somebody else's call was joined). Raises what the work raises."""
        with self._lock:
            flights = self._flights.setdefault(asyncio.get_running_loop(), {})
        joined = key in flights
        if not joined:
            started = flights[key] = _Flight(asyncio.create_task(work()))
            started.task.add_done_callback(lambda _: _land(flights, key, started))
        flight = flights[key]
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), joined
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                _land(flights, key, flight)  # at once: who comes now needs a flight of its own
                flight.task.cancel()


def _land(flights: dict[Hashable, _Flight[T]], key: Hashable, flight: _Flight[T]) -> None:
    if flights.get(key) is flight:
        del flights[key]
