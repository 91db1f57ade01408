"""Where blocking work runs, and what is said of async code that blocks. (Deadlines: with the tools and rewards they end.)"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from agentvision import _workers
from agentvision._workers import DeadlinePassed, ctrl_c_raises, run_async, run_sync


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


@pytest.mark.parametrize("nested", [False, True])
def test_what_ignores_its_cancellation_is_left_behind(monkeypatch, caplog, nested):
    monkeypatch.setattr(_workers, "_LEFT_S", 0.3)

    async def stubborn():
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

    async def work():
        with pytest.raises(DeadlinePassed):
            await run_async(stubborn, name="stubborn", timeout_s=0.05)
        return 5

    async def outer():
        return run_sync(work)

    assert (asyncio.run(outer()) if nested else run_sync(work)) == 5
    assert "stubborn ignores its cancellation" in caplog.text
    gc.collect()  # what was left ends without a word


@pytest.fixture
def sigint() -> Iterator[None]:
    """As in the foreground: it is ignored where the tests are run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def interrupted_just_before():
    os.kill(os.getpid(), signal.SIGINT)  # asyncio's handler: the coroutine is cancelled at its next await
    with ctrl_c_raises():
        time.sleep(30)


@pytest.mark.usefixtures("sigint")
def test_an_interrupt_just_before_what_takes_long_ends_it_too():
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(interrupted_just_before())
    assert time.monotonic() - began < 10


@pytest.mark.usefixtures("sigint")
def test_an_interrupt_is_heard_at_every_moment_of_a_start():
    """Also while the thread that runs the coroutine is being started."""

    async def start():
        with ctrl_c_raises():
            run_sync(lambda: asyncio.sleep(30))

    gc.collect()
    gc.disable()  # Python drops what is raised in a `__del__`
    try:
        for k in range(40):
            timer = threading.Timer(k * 2.5e-4, os.kill, [os.getpid(), signal.SIGINT])
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                timer.start()
                asyncio.run(start())
            timer.join()
            assert time.monotonic() - began < 10
    finally:
        gc.enable()


@pytest.mark.usefixtures("sigint")
def test_an_interrupt_that_wakes_nobody_is_heard():
    """As one does that comes just before the main thread sleeps; here another thread takes it from the system."""

    async def start():
        with ctrl_c_raises():
            run_sync(lambda: asyncio.sleep(30))

    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        asyncio.run(start())
    assert time.monotonic() - began < 10
