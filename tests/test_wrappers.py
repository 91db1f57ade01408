"""Wrappers change one thing and compose."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field, replace

import pytest

from agentvision.checks import check_env
from agentvision.compute import VisionSpec
from agentvision.env import Environment, VisionEnv
from agentvision.errors import PluginError
from agentvision.images import ImageStore
from agentvision.protocol import Protocol
from agentvision.tool import ToolContext, tool
from agentvision.tools import crop, resize_image, zoom
from agentvision.types import Message, Observation, Sample, StepResult, StopReason
from agentvision.wrappers import Deadline, MapObservation, Recorder, ShapeReward, filtered, prefixed, with_timeout

SAMPLE = Sample("s", "One and one?")
ANSWER = Message("assistant", ("<think>.</think><answer>2</answer>",))


@tool
async def wait(ctx: ToolContext, seconds: float) -> str:
    """Wait.

    Args:
        seconds: How long.
    """
    await asyncio.sleep(seconds)
    return "waited"


def waits(seconds: float) -> Message:
    call = json.dumps({"name": "wait", "arguments": {"seconds": seconds}})
    return Message("assistant", (f"<think>.</think><tool_call>{call}</tool_call>",))


def make() -> VisionEnv:
    return VisionEnv(tools=[wait], vision=VisionSpec(), store=ImageStore(), protocol=Protocol(), max_turns=9)


async def test_a_deadline_ends_the_episode_with_its_reason():
    env = Deadline(make(), seconds=90)
    await env.reset(SAMPLE, seed=0)
    assert (await env.step(waits(0))).stop is None
    assert env._until - time.monotonic() <= 90
    env._until = time.monotonic() + 0.3
    result = await env.step(waits(60))  # which its tool gives up after 20 s
    assert result.stop is StopReason.DEADLINE and result.truncated and "90 s" in result.turn.parsed.detail
    await env.reset(SAMPLE, seed=0)
    assert (await env.step(ANSWER)).stop is StopReason.ANSWERED, "the clock begins again with reset"


async def test_a_timeout_of_the_environments_own_is_not_mistaken_for_the_deadline():
    @dataclass
    class Failing:
        steps: list[int] = field(default_factory=list)

        async def reset(self, sample: Sample, *, seed: int) -> Observation:
            return Observation(())

        async def step(self, message: Message) -> StepResult:
            raise TimeoutError("database")

        async def close(self) -> None: ...

    env = Deadline(Failing(), seconds=5)
    await env.reset(SAMPLE, seed=0)
    with pytest.raises(TimeoutError, match="database"):
        await env.step(ANSWER)


async def test_wrappers_compose_and_pass_on_what_they_do_not_change():
    def remind(observation: Observation) -> Observation:
        return replace(observation, messages=(*observation.messages, Message("user", ("Be brief.",))))

    inner = make()
    env = Recorder(ShapeReward(MapObservation(Deadline(inner, seconds=60), change=remind), reward=lambda result: -0.1))
    assert isinstance(env, Environment)
    opening = await env.reset(SAMPLE, seed=0)
    assert opening.messages[-1].text == "Be brief." and env.opening is opening
    middle, last = await env.step(waits(0)), await env.step(ANSWER)
    assert middle.observation is not None and middle.observation.messages[-1].text == "Be brief."
    assert env.steps == [middle, last] and (middle.reward, last.reward) == (-0.1, -0.1)
    assert env.views == inner.views and env.tools is inner.tools
    await env.reset(SAMPLE, seed=0)
    assert env.steps == []
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = env.nothing_such


def test_a_wrapped_environment_keeps_the_contract():
    check_env(Recorder(Deadline(make(), seconds=60)), SAMPLE)


def test_sets_of_tools():
    tools = (crop, zoom, resize_image)
    assert [t.name for t in prefixed(tools, "img_")] == ["img_crop", "img_zoom", "img_resize_image"]
    assert prefixed(tools, "img_")[0].schema["function"]["name"] == "img_crop"
    assert filtered(tools, keep=["zoom", "crop"]) == (zoom, crop)
    assert [t.timeout_s for t in with_timeout(tools, timeout_s=1)] == [1, 1, 1]
    with pytest.raises(PluginError, match="Did you mean 'crop'"):
        filtered(tools, keep=["crob"])
