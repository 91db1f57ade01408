"""Work that many episodes want, often in the same moment, done once for all of them.

The first who asks does it; the others wait for it on their event loop, where they take no thread; whoever comes later finds it
done. What fails is told to all who waited, and tried again for who comes later. Where the first is cancelled, another of
them begins anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any


@dataclass(eq=False, slots=True)
class _Work:
    over: asyncio.Event = field(default_factory=asyncio.Event)
    error: BaseException | None = None
    where: TracebackType | None = None
    """Of the error where it was met: who waited for it says so, and no more."""


class Once:
    """What was made, by what it was made of, and what is at work."""

    def __init__(self) -> None:
        self.made: dict[Hashable, Any] = {}
        self._at_work: dict[Hashable, _Work] = {}

    async def get(self, what: Hashable, make: Callable[[], Awaitable[Any]]) -> Any:
        """What `make` gives, made once for each `what`. Raises what it raises."""
        while what not in self.made:
            here = (what, asyncio.get_running_loop())
            if (work := self._at_work.get(here)) is not None:
                await work.over.wait()
                error, where, work = work.error, work.where, None
                try:
                    if error is not None:
                        raise error.with_traceback(where)
                finally:
                    del error, where  # an error holds the frames that it went through, so these hold none
                continue  # made, or given up by an episode that was cancelled
            work = self._at_work[here] = _Work()
            try:
                self.made[what] = await make()
            except BaseException as error:
                task = asyncio.current_task()
                # An episode that is cancelled has not failed; what was cancelled from inside has.
                if not isinstance(error, asyncio.CancelledError) or task is None or not task.cancelling():
                    work.error, work.where = error, error.__traceback__
                raise
            finally:
                del self._at_work[here]
                work.over.set()
                work = None
        return self.made[what]
