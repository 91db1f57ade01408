"""Turns in lockstep: what is batched together depends on the requests alone, never on timing.

The low bits of a matrix product depend on the batch it is computed in. A policy that batches whatever happens to wait is
fast beside slow tools, and repeats only up to rounding; a run that has to repeat bit for bit (on a CPU, where it can) asks
for a turn of all live episodes at once, ordered by name. The price is a barrier at each turn: the slowest tool of a turn
holds up the others, within its deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol, runtime_checkable

from agentvision.policy import Completion, Request
from agentvision.tokens import Codec


@runtime_checkable
class Batching(Protocol):
    """What a policy needs to be run in lockstep: `submit` queues turns that join the batch together, in order."""

    trainable: bool
    codec: Codec | None

    @property
    def version(self) -> int: ...
    def submit(self, requests: Sequence[Request]) -> list[Awaitable[Completion]]: ...
    async def release(self, session: str) -> None: ...
    async def close(self) -> None: ...


class Lockstep:
    """A policy around another for a known number of episodes, each of which has to run (or be released) to its end.

    With `at_once`, only so many of them run at a time, and the next begins as one ends.
    """

    trainable = True

    def __init__(self, policy: Batching, *, episodes: int, at_once: int | None = None) -> None:
        self._policy = policy
        self._live = episodes
        self._at_once = episodes if at_once is None else at_once
        self._waiting: list[tuple[Request, asyncio.Future[Awaitable[Completion]]]] = []
        self.codec: Codec | None = policy.codec

    @property
    def version(self) -> int:
        return self._policy.version

    async def complete(self, request: Request) -> Completion:
        """Complete one turn, together with that of every other live episode."""
        joined: asyncio.Future[Awaitable[Completion]] = asyncio.get_running_loop().create_future()
        entry = (request, joined)
        self._waiting.append(entry)
        self._go_if_all_wait()
        try:
            completion = await joined
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            raise
        return await completion

    async def release(self, session: str) -> None:
        """An episode is over: the others need not wait for it."""
        await self._policy.release(session)
        self._live -= 1
        self._go_if_all_wait()

    async def close(self) -> None:
        """The policy inside stays open: it is not this one's."""

    def _go_if_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < min(self._live, self._at_once):
            return
        # An episode that was cancelled just now has not taken its request back yet.
        batch = sorted((e for e in self._waiting if not e[1].done()), key=lambda entry: entry[0].session)
        self._waiting = []
        for (_, joined), completion in zip(batch, self._policy.submit([r for r, _ in batch]), strict=True):
            joined.set_result(completion)
