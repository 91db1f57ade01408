"""Where blocking work runs, and what is said of async code that blocks. (Deadlines: with the tools and rewards they end.)"""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from agentvision import _workers
from agentvision._workers import DeadlinePassed, run_async, run_sync


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workers, "BLOCKING_S", 0.2)
    monkeypatch.setattr(_workers, "_blockers", set())


async def test_what_blocks_the_loop_is_named_once_and_what_only_waits_is_not(caplog: pytest.LogCaptureFixture) -> None:
    async def blocks() -> int:
        await asyncio.sleep(0)
        time.sleep(0.3)
        return 1

    async def waits() -> int:
        await asyncio.sleep(0.5)
        return 2

    with caplog.at_level(logging.WARNING):
        work = [run_async(f, name=f.__name__, timeout_s=9) for f in (waits, blocks, blocks)]
        assert await asyncio.gather(*work) == [2, 1, 1]
    assert [record.args[0] for record in caplog.records] == ["blocks"]  # type: ignore[index]


async def test_watching_changes_nothing_about_errors_deadlines_and_cancellation() -> None:
    seen = []

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("its own")

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(9)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with pytest.raises(KeyError, match="its own"):
        await run_async(fails, name="fails", timeout_s=9)
    with pytest.raises(DeadlinePassed, match="slow did not finish"):
        await run_async(cleans_up, name="slow", timeout_s=0.05)
    await asyncio.sleep(0.01)
    task = asyncio.create_task(run_async(cleans_up, name="left", timeout_s=9))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert seen == ["cancelled"] * 2


async def twice(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


def test_a_coroutine_is_run_from_plain_code() -> None:
    assert run_sync(lambda: twice(2)) == 4


async def test_a_coroutine_is_run_from_plain_code_inside_a_loop() -> None:
    assert run_sync(lambda: twice(3)) == 6
