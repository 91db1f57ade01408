"""The circuit breaker: when a provider is down, few find out and the others neither hammer it nor wait for long.

Closed, attempts pass. `FAILURES` in a row open it (or two, when nothing has succeeded for `patience_s`: with few requests at a
time and long deadlines, many in a row take too long). Open, one attempt at a time passes as a probe, at most one in
`PROBE_EVERY_S`; the others wait for it. The first success closes it. Nobody waits once `patience_s` have passed since the
failures began, counted from when the first of them was sent: then `ChatDown`, at once, until a probe succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from agentvision.chat.errors import ChatDown, Fault

FAILURES = 10
PROBE_EVERY_S = 1.0


@dataclass(eq=False)
class Breaker:
    """One for each provider and model. Used on the network's loop alone."""

    name: str
    patience_s: float
    opened: int = field(default=0, init=False)  # how often
    _failures: int = field(default=0, init=False)  # in a row
    _since: float = field(default=float("inf"), init=False)  # when the first of them was sent
    _alive_at: float = field(default=float("-inf"), init=False)
    _last: str = field(default="", init=False)
    _open: bool = field(default=False, init=False)
    _probing: bool = field(default=False, init=False)
    _probe_at: float = field(default=0.0, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if not self._open:
            return "closed"
        return "half-open" if self._probing else "open"

    @asynccontextmanager
    async def attempt(self, *, again: bool = False) -> AsyncIterator[None]:
        """One attempt within: a `Fault` that leaves it counts, anything else means that the provider answered.

        `again` says that it is a retry. Once patience is over none is a probe, or the call that probed would go on for as
        many deadlines as it has attempts.
        """
        probe = await self._admitted(again)
        sent = asyncio.get_running_loop().time()
        try:
            yield
        except asyncio.CancelledError:
            raise  # says nothing about the provider
        except Fault as fault:
            if fault.down:
                self._failed(sent, fault.reason)
            else:
                self._answered()
            raise
        except BaseException:
            self._answered()
            raise
        else:
            self._answered()
        finally:
            if probe:
                self._probing = False
                self._wake()

    def check(self) -> None:
        """Raises `ChatDown` when callers are not to wait any longer. A probe may still be due: `attempt` decides on that."""
        now = asyncio.get_running_loop().time()
        if self._open and now >= self._since + self.patience_s and (self._probing or now < self._probe_at):
            raise self._down(now)

    async def _admitted(self, again: bool) -> bool:
        """Wait until an attempt may pass; whether it is a probe."""
        loop = asyncio.get_running_loop()
        while self._open:
            now = loop.time()
            left_s = self._since + self.patience_s - now
            if not self._probing and now >= self._probe_at and not (again and left_s <= 0):
                self._probing = True
                return True
            if left_s <= 0:
                raise self._down(now)
            if not self._probing:
                left_s = min(left_s, self._probe_at - now)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)
        return False

    def _down(self, now: float) -> ChatDown:
        return ChatDown(
            f"{self.name} has been failing for {now - self._since:.0f} s ({self._failures} attempts in a row, the last: "
            f"{self._last}). It is tried again every {PROBE_EVERY_S:g} s.",
            reason="down",
        )

    def _failed(self, sent: float, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        self._failures += 1
        self._last = reason
        self._since = min(self._since, max(sent, self._alive_at))
        self._probe_at = now + PROBE_EVERY_S
        tired = self._failures >= 2 and now - self._since >= self.patience_s
        if not self._open and (self._failures >= FAILURES or tired):
            self._open = True
            self.opened += 1

    def _answered(self) -> None:
        self._alive_at = asyncio.get_running_loop().time()
        self._failures, self._since = 0, float("inf")
        if self._open:
            self._open = False
            self._wake()

    def _wake(self) -> None:
        """Those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()
