"""The in-process policy at its limits: too many sessions, cancelled turns, broken requests, a failing engine."""

import asyncio
import threading
import time
from dataclasses import replace

import pytest
import torch

from agentvision.errors import ModelError
from agentvision.images import ImageStore
from agentvision.policies.transformers import TransformersPolicy
from agentvision.policy import SamplingParams
from agentvision.types import ImageSegment, TextSegment

from .policy_cases import assert_exact, picture, run


def endless(codec, *, step_s):
    """For `head`: no turn ends by itself, and none is quick."""

    def change(logits):
        time.sleep(step_s)
        return logits.index_fill(-1, torch.tensor(codec.stop_ids), -torch.inf)

    return change


async def until_said(policy, tokens=3):
    while policy.stats.decode_steps < tokens:
        await asyncio.sleep(0.005)


async def test_more_sessions_than_rows_take_turns(model, codec, talk):
    policy = TransformersPolicy(model, codec, max_rows=2, prefill_tokens=40)
    talks = [talk(session=f"{k}", seed=k, images=[picture(k)]) for k in range(6)]

    async def whole(t):
        await run(t, policy, 2)
        await policy.release(t.session)

    await asyncio.wait_for(asyncio.gather(*(whole(t) for t in talks)), 60)
    for t in talks:
        assert_exact(model, codec, t)
    await policy.close()


async def test_a_session_that_is_never_released_gives_way(model, codec, talk):
    policy = TransformersPolicy(model, codec, max_rows=1)
    first, second = talk(session="a", images=[picture(1)]), talk(session="b", images=[picture(2)])
    await first.turn(policy)
    await asyncio.wait_for(second.turn(policy), 30)
    assert policy.stats.evicted_sessions == 1
    first.reply()
    await asyncio.wait_for(first.turn(policy), 30)
    assert_exact(model, codec, first)
    await policy.close()


async def test_other_coroutines_go_on_while_a_turn_is_sampled(policy, talk, head):
    head(lambda logits: time.sleep(0.01))
    turn = asyncio.create_task(talk().turn(policy, max_tokens=30))
    ticks = 0
    while not turn.done():
        await asyncio.sleep(0.005)
        ticks += 1
    assert ticks > 15


async def test_a_cancelled_turn_leaves_its_row_and_the_others_alone(model, codec, talk, head):
    policy = TransformersPolicy(model, codec, max_rows=3)
    head(endless(codec, step_s=0.002))
    left = [asyncio.create_task(talk(session=f"e{k}").turn(policy, max_tokens=10_000)) for k in range(2)]
    t = talk(session="good", images=[picture()])
    going = asyncio.create_task(t.turn(policy, max_tokens=40))
    await until_said(policy)
    for task in left:
        task.cancel()
    results = await asyncio.gather(*left, return_exceptions=True)
    assert all(isinstance(r, asyncio.CancelledError) for r in results)
    await going
    assert_exact(model, codec, t)
    others = [talk(session=f"n{k}", seed=k) for k in range(2)]
    await asyncio.wait_for(asyncio.gather(*(o.turn(policy) for o in others)), 30)
    assert policy.stats.evicted_sessions == 0
    await policy.close()


async def test_releasing_a_session_ends_its_turn(policy, codec, talk, head):
    head(endless(codec, step_s=0.002))
    turn = asyncio.create_task(talk(session="a").turn(policy, max_tokens=10_000))
    await until_said(policy)
    await policy.release("a")
    with pytest.raises(RuntimeError, match="'a' was released"):
        await asyncio.wait_for(turn, 20)


async def test_memory_goes_back_when_no_session_is_left(policy, model, codec, talk, monkeypatch):
    monkeypatch.setattr("agentvision.policies._rows._KEEP_BYTES", 0)
    for session in ("a", "b"):
        t = talk(session=session, images=[picture()])
        await run(t, policy, 2)
        assert_exact(model, codec, t)
        await policy.release(session)
        while policy._engine.is_large:
            await asyncio.sleep(0.01)


async def test_a_failing_engine_fails_its_requests_and_goes_on(policy, model, codec, talk):
    def fail(module, inputs, logits):
        if policy.stats.decode_steps == 2:
            policy.stats.decode_steps += 1
            raise RuntimeError("out of memory")

    hook = model.lm_head.register_forward_hook(fail)
    talks = [talk(session=f"{k}", images=[picture()]) for k in range(3)]
    results = await asyncio.gather(*(t.turn(policy) for t in talks), return_exceptions=True)
    hook.remove()
    assert [str(r) for r in results] == ["out of memory"] * 3
    t = talk(session="0", images=[picture()])
    await run(t, policy, 2)
    assert_exact(model, codec, t)


async def test_an_image_that_is_missing_fails_its_request_alone(policy, model, codec, talk):
    good, bad, sibling = (talk(session=s, images=[picture(n)]) for s, n in (("a", 1), ("b", 900), ("c", 900)))
    bad.store = ImageStore()
    sibling.store = bad.store
    results = await asyncio.gather(*(t.turn(policy) for t in (good, bad, sibling)), return_exceptions=True)
    assert [isinstance(r, Exception) for r in results] == [False, True, True]
    assert_exact(model, codec, good)
    again = talk(session="b", images=[picture(900)])
    await again.turn(policy)
    assert_exact(model, codec, again)


async def test_weights_that_diverged_are_an_error_of_the_turn(policy, talk, head):
    head(lambda logits: torch.full_like(logits, torch.nan))
    with pytest.raises(ModelError, match="not finite"):
        await talk().turn(policy)


@pytest.mark.parametrize(
    "broken",
    [
        lambda r: replace(r, segments=()),
        lambda r: replace(r, segments=(TextSegment((10**6,)),)),
        lambda r: replace(r, sampling=SamplingParams(max_tokens=0)),
        lambda r: replace(r, sampling=SamplingParams(temperature=-1.0)),
        lambda r: replace(r, segments=(*r.segments, ImageSegment(1, "ab" * 32, (1, 4, 4), 3))),
    ],
)
async def test_an_impossible_request_is_refused_and_harms_nobody(policy, model, codec, talk, broken):
    good = talk(session="good")
    results = await asyncio.gather(
        policy.complete(broken(talk(session="bad").request())), good.turn(policy), return_exceptions=True
    )
    assert isinstance(results[0], (ValueError, KeyError))
    assert_exact(model, codec, good)


async def test_closing_fails_what_still_waits(model, codec, talk, head):
    policy = TransformersPolicy(model, codec, max_rows=1)
    head(endless(codec, step_s=0.005))
    turns = [asyncio.create_task(talk(session=f"{k}").turn(policy, max_tokens=10_000)) for k in range(3)]
    await until_said(policy)
    await asyncio.wait_for(policy.close(), 30)
    results = await asyncio.gather(*turns, return_exceptions=True)
    assert all("closed" in str(r) for r in results)
    with pytest.raises(RuntimeError, match="closed"):
        await talk().turn(policy)


def test_several_event_loops_may_share_a_policy(model, codec, talk):
    policy = TransformersPolicy(model, codec)
    talks = [talk(session=f"{k}", seed=k, images=[picture(k)]) for k in range(4)]
    threads = [threading.Thread(target=lambda t=t: asyncio.run(run(t, policy, 2))) for t in talks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    asyncio.run(policy.close())
    for t in talks:
        assert_exact(model, codec, t)
