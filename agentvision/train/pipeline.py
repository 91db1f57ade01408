"""Batches of rollouts, one a step, in order; at most `max_staleness` steps ahead of the weights.

A batch may begin once the weights are no more than `max_staleness` steps from those that will learn from it: with 0
when its own step begins, so that rollouts and updates take turns; with 1 while the update before runs. Batches are rolled
out one after another, never two at a time, so that the prompts of finished steps are always the first that were drawn. An
update that has company runs in a thread: the event loop, and with it tools, judges and turns, goes on. Weights that change
meanwhile change under turns in flight, which go on (`Completion.versions`).

What fails in a batch is raised where its step asks for it. Batches ahead are not saved: a resumed run begins them anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from agentvision.engine.ranks import on_this_gpu
from agentvision.images import ImageStore
from agentvision.train.collect import Collected

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """The rollouts of one step, with their images. `cursor` counts the prompts drawn up to the last of them."""

    collected: Collected
    store: ImageStore
    cursor: int


class Pipeline:
    """`roll` rolls out the batch of a step (counted from 0); none is begun ahead for the step `steps` or later."""

    def __init__(self, roll: Callable[[int], Awaitable[Batch]], *, max_staleness: int, steps: int) -> None:
        self._roll, self._ahead, self._steps = roll, max_staleness, steps
        self._batches: dict[int, asyncio.Task[Batch]] = {}
        self._thread: ThreadPoolExecutor | None = None

    async def batch(self, step: int) -> Batch:
        """The batch of `step`, asked for when the weights have had `step` updates: those ahead may begin as well."""
        for number in range(step, step + self._ahead + 1):
            if number not in self._batches and (number == step or number < self._steps):
                after = self._after(self._batches.get(number - 1), number)
                self._batches[number] = asyncio.create_task(after, name=f"batch of step {number}")
        return await self._batches.pop(step)

    async def _after(self, before: asyncio.Task[Batch] | None, step: int) -> Batch:
        if before is not None:
            await asyncio.shield(before)
        return await self._roll(step)

    async def meanwhile(self, work: Callable[[], T]) -> T:
        """Do `work`, in a thread where batches may be rolled out meanwhile. It is never abandoned half-way."""
        if not self._ahead:
            return work()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="agentvision-update")
        working = asyncio.get_running_loop().run_in_executor(self._thread, on_this_gpu(work))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait([working])
            raise

    async def close(self) -> None:
        """Give up the batches that were begun."""
        for task in self._batches.values():
            task.cancel()
        await asyncio.gather(*self._batches.values(), return_exceptions=True)
        self._batches.clear()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
