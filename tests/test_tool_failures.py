"""The boundary around tools: nothing that goes wrong inside one gets through, and none outlives its deadline."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from PIL import Image

from agentvision import _workers
from agentvision.errors import ToolFailure, ToolRetry
from agentvision.geometry import Affine
from agentvision.tool import MAX_TEXT, Tool, ToolContext, ToolResult, tool
from agentvision.types import ToolError
from agentvision.views import NewView

from .tool_cases import call, context

# --- what goes wrong inside -----------------------------------------------------------------------------------------


def raising(error: BaseException, *, is_async: bool) -> Tool:
    if is_async:

        async def fails(ctx: ToolContext) -> ToolResult:
            """Fail."""
            raise error
    else:

        def fails(ctx: ToolContext) -> ToolResult:
            """Fail."""
            raise error

    return tool(fails)


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ToolRetry("once more"), ToolError.RETRY),
        (ToolFailure("not possible"), ToolError.FAILED),
        (ValueError("secret /root/key"), ToolError.CRASHED),
        (TimeoutError("their own"), ToolError.CRASHED),
        (asyncio.CancelledError("their own"), ToolError.CRASHED),
        (SystemExit(3), ToolError.CRASHED),
        (RecursionError(), ToolError.CRASHED),
        (StopIteration(), ToolError.CRASHED),
        (MemoryError(), ToolError.CRASHED),
    ],
)
async def test_each_way_to_fail_is_recorded(error: BaseException, kind: ToolError, is_async: bool):
    record = (await call(raising(error, is_async=is_async))).record
    assert record.error is kind and not record.ok
    if kind is ToolError.CRASHED:
        assert record.text == "The tool fails failed with an internal error."
        assert record.detail and "secret" not in record.text
    else:
        assert record.text == str(error) and record.detail == ""


@pytest.mark.parametrize(
    "rubbish",
    [
        None,
        7,
        [Image.new("RGB", (28, 28))],
        ToolResult(text=3),  # type: ignore[arg-type]
        ToolResult(images=None),  # type: ignore[arg-type]
        ToolResult(images=("x",)),  # type: ignore[arg-type]
        ToolResult(images=(NewView(Image.new("RGB", (30, 30)), "0" * 64, Affine()),)),
        ToolResult(images=(NewView(Image.new("RGB", (56, 56)), "0" * 64, Affine()),)),
        ToolResult(images=(NewView(None, "0" * 64, Affine()),)),  # type: ignore[arg-type]
    ],
)
async def test_rubbish_is_recorded_with_a_reason_for_its_author(rubbish: Any):
    @tool
    def broken(ctx: ToolContext) -> ToolResult:
        """Break."""
        return rubbish

    record = (await call(broken)).record
    assert record.error is ToolError.CRASHED and "internal error" in record.text and record.detail


async def test_text_is_made_fit_to_be_encoded_and_cut():
    @tool
    def long(ctx: ToolContext) -> str:
        """Speak."""
        return "\ud800" + "a" * MAX_TEXT

    text = (await call(long)).record.text
    assert text.startswith("?a") and "cut" in text and len(text) < MAX_TEXT + 50


# --- deadlines ------------------------------------------------------------------------------------------------------


async def test_a_blocking_hang_ends_at_its_deadline_and_the_loop_runs_on():
    release = threading.Event()

    @tool(timeout_s=0.2)
    def hang(ctx: ToolContext) -> str:
        """Hang."""
        release.wait(20)
        return ""

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    start = time.perf_counter()
    record = (await call(hang)).record
    assert record.error is ToolError.DEADLINE and "0.2 s" in record.text
    assert time.perf_counter() - start < 15 and ticks >= 1
    ticking.cancel()
    release.set()


async def test_an_async_hang_ends_even_when_it_ignores_cancellation():
    over, start = asyncio.Event(), time.perf_counter()

    @tool(timeout_s=0.1)
    async def stubborn(ctx: ToolContext) -> str:
        """Hang."""
        while not over.is_set() and time.perf_counter() - start < 30:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return ""

    assert (await call(stubborn)).record.error is ToolError.DEADLINE
    assert time.perf_counter() - start < 20  # it would have gone on for 30 s
    over.set()


async def test_hanging_calls_do_not_use_up_the_threads_of_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_workers, "SIZE", 2)
    monkeypatch.setattr(_workers, "MAX_ABANDONED", 6)
    release = threading.Event()

    @tool(name="hang2", timeout_s=0.1)
    def hang(ctx: ToolContext) -> str:
        """Hang."""
        release.wait(30)
        return ""

    @tool
    def works(ctx: ToolContext) -> str:
        """Work."""
        return threading.current_thread().name

    ctx = context()
    for outcome in await asyncio.gather(*(call(hang, ctx) for _ in range(6))):
        assert outcome.record.error is ToolError.DEADLINE
    names = [outcome.record.text for outcome in await asyncio.gather(*(call(works, ctx) for _ in range(20)))]
    assert len(names) == 20 and all(name == "agentvision worker" for name in names)

    refused = (await call(hang, ctx)).record
    assert refused.error is ToolError.DEADLINE and "still hang" in refused.text
    release.set()
    for _ in range(1000):
        await asyncio.sleep(0.02)
        if not _workers._POOL._abandoned["The tool hang2"]:
            break
    assert (await call(hang, ctx)).record.ok, "once the hanging calls have returned, the tool is back"


async def test_waiting_for_a_thread_is_not_counted_against_the_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_workers, "SIZE", 1)
    monkeypatch.setattr(_workers, "_POOL", pool := _workers._Pool())
    started, release = threading.Event(), threading.Event()

    @tool(timeout_s=60)
    def slow(ctx: ToolContext) -> str:
        """Take a while."""
        started.set()
        release.wait(30)
        return "done"

    @tool(timeout_s=0.8)
    def quick(ctx: ToolContext) -> str:
        """Take none."""
        return "done"

    ctx = context()
    calls = [asyncio.create_task(call(slow, ctx))]
    while not started.is_set():
        await asyncio.sleep(0.01)
    calls.append(asyncio.create_task(call(quick, ctx)))
    while not pool._queue:
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.2)
    release.set()
    assert all(outcome.record.ok for outcome in await asyncio.gather(*calls))


@pytest.mark.parametrize("is_async", [True, False])
async def test_cancelling_the_episode_passes_through(is_async: bool):
    started, cancelled = threading.Event(), threading.Event()

    async def waits(ctx: ToolContext) -> str:
        """Wait."""
        started.set()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    def blocks(ctx: ToolContext) -> str:
        """Wait."""
        started.set()
        time.sleep(0.3)
        return ""

    task = asyncio.create_task(call(tool(waits if is_async else blocks)))
    while not started.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert cancelled.is_set() == is_async
