"""What may be asked: requests and tokens a minute, and for how much money.

Used on the network's loop alone, so without locks between threads; the clock is the loop's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from agentvision.chat.errors import CostCeiling

WINDOW_S = 60.0
CHECK_EVERY_S = 1.0


@dataclass(eq=False)
class Taken:
    """An amount out of a rate's minute."""

    at: float
    amount: float


@dataclass(eq=False)
class Rate:
    """Never more than `per_minute` in any 60 s; first come, first served."""

    per_minute: float
    _window: deque[Taken] = field(default_factory=deque, init=False)
    _sum: float = field(default=0.0, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def take(self, amount: float, *, check: Callable[[], None] = lambda: None) -> Taken:
        """Wait until the amount fits; what is larger than the whole limit goes alone. `check` may raise to end the wait."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            check()
            while (wait_s := self._wait_s(min(amount, self.per_minute), loop.time())) > 0:
                await asyncio.sleep(min(wait_s, CHECK_EVERY_S))
                check()
            taken = Taken(loop.time(), amount)
            self._window.append(taken)
            self._sum += amount
            return taken

    def correct(self, taken: Taken, amount: float) -> None:
        """What was estimated when it was taken is now known."""
        if taken in self._window:
            self._sum += amount - taken.amount
            taken.amount = amount

    def _wait_s(self, amount: float, now: float) -> float:
        while self._window and self._window[0].at <= now - WINDOW_S:
            self._sum -= self._window.popleft().amount
        free, until = self.per_minute - self._sum, now
        for taken in self._window:
            if free >= amount:
                break
            free, until = free + taken.amount, taken.at + WINDOW_S
        return until - now


@dataclass(eq=False)
class Budget:
    """Money spent, never more than `ceiling_usd`: what a request may cost at most is set aside until its cost is known."""

    ceiling_usd: float | None
    spent_usd: float = 0.0
    _aside_usd: float = field(default=0.0, init=False)
    _out: int = field(default=0, init=False)
    _settled: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @asynccontextmanager
    async def hold(self, most_usd: float) -> AsyncIterator[None]:
        """Set the most that a request may cost aside while it is out. Raises `CostCeiling` when there is not so much."""
        if self.ceiling_usd is not None:
            while self.spent_usd + self._aside_usd + most_usd > self.ceiling_usd:
                if not self._out:  # nothing is out that could turn out cheaper
                    raise CostCeiling(
                        f"{self.spent_usd:.4f} of max_cost_usd={self.ceiling_usd:g} US dollars are spent, and the next "
                        f"request may cost {most_usd:.4f}. Raise max_cost_usd, or lower max_tokens.",
                        reason="cost_ceiling",
                    )
                self._settled.clear()
                await self._settled.wait()
        self._aside_usd += most_usd
        self._out += 1
        try:
            yield
        finally:
            self._out -= 1
            self._aside_usd = self._aside_usd - most_usd if self._out else 0.0  # rounding must not add up
            self._settled.set()
