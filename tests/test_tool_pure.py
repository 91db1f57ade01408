"""Pure tools: calls that are the same, over the same views of one store, are made once."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from agentvision.checks import check_tool
from agentvision.env import VisionEnv
from agentvision.errors import PluginError, ToolRetry
from agentvision.policies.replay import ReplayPolicy
from agentvision.policy import SamplingParams
from agentvision.protocol import Protocol
from agentvision.rollout import run_group
from agentvision.tool import ToolContext, ToolResult, ViewId, tool
from agentvision.types import Message, Sample, ToolError

from .tool_cases import call, context

CALLS: Counter[str] = Counter()


@tool(pure=True)
def count(ctx: ToolContext, word: str = "", image: ViewId = 1) -> ToolResult:
    """Count calls.

    Args:
        word: What is counted.
        image: Which image is shown again.
    """
    CALLS[word] += 1
    if word == "retry":
        raise ToolRetry("not so")
    return ToolResult(f"{word} {CALLS[word]} {ctx.seed}", (ctx.look(image),))


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


async def test_the_same_call_is_made_once_in_a_store_and_another_is_another():
    ctx = context(seed=7)
    first = await call(count, ctx, word="a")
    assert first.record.text == "a 1 0", "whose seed it would be is nobody's"
    assert (await call(count, replace(ctx, seed=8), word="a")).result is first.result
    assert (await call(count, ctx, word="b")).record.text == "b 1 0"
    assert (await call(count, ctx, word="a", image=1)).record.text == "a 2 0", "told apart by what the model wrote"
    view = replace(ctx.views[1], source="elsewhere")
    assert (await call(count, replace(ctx, views={1: view}), word="a")).record.text == "a 3 0"
    assert (await call(count, context(), word="a")).record.text == "a 4 0", "another store"
    assert (await call(replace(count, pure=False), ctx, word="a")).record.text == "a 5 7"


async def test_true_and_one_are_two_arguments():
    @tool(pure=True)
    def show(ctx: ToolContext, what: int | bool) -> str:
        """Show.

        Args:
            what: It.
        """
        return repr(what)

    ctx = context()
    assert [(await call(show, ctx, what=what)).record.text for what in (1, True, 1)] == ["1", "True", "1"]


async def test_what_fails_is_told_and_tried_again():
    ctx = context()
    together = await asyncio.gather(*(call(count, ctx, word="retry") for _ in range(4)))
    assert {outcome.record.error for outcome in together} == {ToolError.RETRY} and CALLS["retry"] == 1
    await call(count, ctx, word="retry")
    assert CALLS["retry"] == 2


async def test_calls_that_come_together_are_one_and_a_cancelled_one_is_taken_over():
    go, begun = threading.Event(), []

    @tool(pure=True)
    def slow(ctx: ToolContext) -> str:
        """Take long."""
        begun.append(1)
        go.wait(30)
        return "done"

    ctx = context()
    first, *others = [asyncio.create_task(call(slow, ctx)) for _ in range(5)]
    while not begun:
        await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go.set()
    assert {outcome.record.text for outcome in await asyncio.gather(*others)} == {"done"} and len(begun) == 2


async def test_arguments_that_cannot_be_written_down_are_wrong_arguments():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for word in (deep, 10**5000):
        assert (await call(count, context(), word=word)).record.error is ToolError.BAD_ARGUMENTS


async def test_a_group_calls_its_tool_once_and_begins_alike():
    class Opening(Protocol):
        def opening(self, *args, **kwargs):
            CALLS["opening"] += 1
            return super().opening(*args, **kwargs)

    ctx = context()
    protocol = Opening()

    def make_env(tools=(count,)):
        return VisionEnv(tools=tools, vision=ctx.vision, store=ctx.store, protocol=protocol)

    asks = '<think>look</think>\n<tool_call>{"name": "count", "arguments": {"word": "w"}}</tool_call>'
    sample = Sample("s", "What?", (ctx.image(1),))
    group = await run_group(
        sample,
        size=8,
        make_env=make_env,
        store=ctx.store,
        sampling=SamplingParams(),
        policy=ReplayPolicy([asks, "<think>seen</think>\n<answer>9</answer>"]),
    )
    assert all(len(t.views) == 2 and t.answer == "9" for t in group.trajectories)
    assert CALLS == {"opening": 1, "w": 1}
    assert len({t.messages for t in group.trajectories}) == 1

    other = make_env(tools=())
    opening = await other.reset(sample, seed=0)
    assert "count" not in opening.messages[0].text and CALLS["opening"] == 2, "other tools, another opening"


async def test_a_bug_is_told_to_each_as_it_was_met():
    def fails(ctx: ToolContext) -> str:
        """Fail."""
        CALLS["fails"] += 1
        raise RuntimeError("a bug")

    broken, ctx = tool(pure=True)(fails), context()
    details = [outcome.record.detail for outcome in await asyncio.gather(*(call(broken, ctx) for _ in range(16)))]
    assert CALLS["fails"] == 1
    assert {detail.count("in fails") for detail in details} == {1}
    assert max(detail.count("\n") for detail in details) < 30, "no one's frames but one's own and the tool's"


async def test_what_is_cancelled_from_inside_fails_for_all_who_wait():
    begun = []

    @tool(pure=True)
    async def asks(ctx: ToolContext) -> str:
        """Ask."""
        begun.append(1)
        await asyncio.sleep(0.01)
        raise asyncio.CancelledError

    ctx = context()
    outcomes = await asyncio.gather(*(call(asks, ctx) for _ in range(8)))
    assert {outcome.record.error for outcome in outcomes} == {ToolError.CRASHED} and len(begun) == 1


async def test_variants_and_methods_of_one_instance_are_one_tool():
    class Counter:
        """Cannot be hashed by value."""

        __hash__ = None

        def __init__(self):
            self.calls = 0

        @tool(pure=True)
        def next(self, ctx: ToolContext) -> str:
            """Count."""
            self.calls += 1
            return str(self.calls)

    one, two, ctx = Counter(), Counter(), context()
    assert [(await call(replace(each.next, timeout_s=k), ctx)).record.text for k, each in ((1, one), (2, one), (3, two))] == [
        "1", "1", "1",
    ]  # fmt: skip
    assert (one.calls, two.calls) == (1, 1)


async def test_a_store_goes_with_all_that_was_made_for_it():
    """Also where a tool refers to it."""
    ctx = context()
    store = weakref.ref(ctx.store)

    def make(kept):
        @tool(pure=True)
        def sees(ctx: ToolContext) -> str:
            """See."""
            return str(len(kept))

        return sees

    env = VisionEnv(tools=[make(ctx.store)], vision=ctx.vision, store=ctx.store, protocol=Protocol())
    await env.reset(Sample("s", "?", (ctx.image(1),)), seed=0)
    await env.step(
        Message("assistant", ('<think>.</think>\n<tool_call>{"name": "sees", "arguments": {}}</tool_call>',))
    )
    del env, ctx
    gc.collect()
    assert store() is None


@pytest.mark.parametrize("pure", [True, False])
async def test_a_store_does_not_wait_for_a_collection_when_calls_fail(pure):
    @tool(pure=pure)
    def fails(ctx: ToolContext, kind: str) -> str:
        """Fail.

        Args:
            kind: How.
        """
        raise ToolRetry("no such place") if kind == "retry" else RuntimeError("a bug")

    @tool(pure=pure)
    async def fails_too(ctx: ToolContext) -> str:
        """Fail."""
        await asyncio.sleep(0)
        raise RuntimeError("a bug")

    ctx = context()
    store = weakref.ref(ctx.store)
    gc.collect()
    gc.disable()
    try:
        for kind in ("retry", "bug"):
            await asyncio.gather(*(call(fails, ctx, kind=kind) for _ in range(4)))
        await asyncio.gather(*(call(fails_too, ctx) for _ in range(4)))
        del ctx
        for _ in range(200):
            await asyncio.sleep(0.01)  # threads put away what they did
            if store() is None:
                break
        assert store() is None
    finally:
        gc.enable()


async def test_what_an_environment_of_ones_own_says_is_its_own():
    @dataclass(frozen=True)
    class FewShot(Protocol):
        shots: list = field(default_factory=list)

        def opening(self, *args, **kwargs):
            return Message("user", tuple(self.shots)), *super().opening(*args, **kwargs)

    class Silent(VisionEnv):
        schemas = ()
        full_tokens = 7

    ctx = context()
    sample = Sample("s", "What?", (ctx.image(1),))

    async def opening(kind, protocol):
        env = kind(tools=[count], vision=ctx.vision, store=ctx.store, protocol=protocol)
        return await env.reset(sample, seed=0)

    one, two = [await opening(VisionEnv, FewShot(shots=[word])) for word in ("a", "b")]
    assert [each.messages[0].text for each in (one, two)] == ["a", "b"]
    plain, silent = await opening(VisionEnv, protocol := Protocol()), await opening(Silent, protocol)
    assert "count" in plain.messages[0].text and "count" not in silent.messages[0].text
    assert silent.full_tokens == 7 != plain.full_tokens


def test_an_author_is_told_that_a_tool_is_not_pure():
    check_tool(replace(count, function=lambda ctx, word="", image=1: ToolResult(f"{word} {image}")))

    @tool(pure=True)
    def draws(ctx: ToolContext) -> str:
        """Draw."""
        return str(ctx.seed)

    with pytest.raises(PluginError, match=r"is pure, and two calls .* differ"):
        check_tool(draws)
