"""The helpers for authors find what they are there to find."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agentvision.checks import check_env, check_tool
from agentvision.compute import VisionSpec
from agentvision.env import VisionEnv
from agentvision.errors import PluginError
from agentvision.images import ImageStore
from agentvision.protocol import Protocol
from agentvision.tool import Tool, ToolContext, ToolResult, ViewId, tool
from agentvision.tools import crop
from agentvision.types import Message, Observation, Sample, StepResult, ViewPart
from agentvision.wrappers import EnvWrapper

COUNT = itertools.count()
SAMPLE = Sample("s", "?", (Image.new("RGB", (60, 60)),))


@tool
def fickle(ctx: ToolContext) -> str:
    """Differ."""
    return str(next(COUNT))


@tool
def silent(ctx: ToolContext) -> str:
    """Say nothing."""
    return ""


@tool
def careless(ctx: ToolContext, image: ViewId = 1) -> str:
    """Trust that there is an image.

    Args:
        image: Which.
    """
    return str(ctx.views[image].size)


@tool
def painter(ctx: ToolContext) -> ToolResult:
    """Paint on what was shown."""
    if ctx.views:
        ctx.store.get(ctx.view(1).image).paste("red", (0, 0, 20, 20))
    return ToolResult("painted")


@tool
def undescribed(ctx: ToolContext, amount: int) -> str:
    """Leave an argument undescribed."""
    return "x"


@tool
def picky(ctx: ToolContext, word: str) -> str:
    """Take one word only.

    Args:
        word: The word.
    """
    return {"please": "ok"}[word]


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (fickle, "two calls with the same arguments and seed differ"),
        (silent, "neither text nor an image"),
        (careless, "without any image it crashed"),
        (painter, "changed the pixels of the store"),
        (undescribed, "'amount' is not described"),
        (picky, "KeyError: 'text'"),
        (replace(crop, name="cut out!"), "'cut out!'"),
    ],
)
def test_each_broken_tool_is_told_why(made: Tool, problem: str):
    with pytest.raises(PluginError, match=problem):
        check_tool(made)


async def test_arguments_may_be_given_and_a_running_loop_is_no_hindrance():
    with pytest.raises(PluginError, match="crashed"):
        check_tool(picky, {"word": "other"})
    check_tool(crop, {"box": [0, 0, 30, 30], "image": 2})


class Broken(EnvWrapper):
    """Each break of the contract, by name."""

    def __init__(self, how: str) -> None:
        super().__init__(VisionEnv(tools=[], vision=VisionSpec(), store=ImageStore(), protocol=Protocol(), max_turns=3))
        self.how = how

    async def reset(self, sample: Sample, *, seed: int) -> Observation:
        opening = await super().reset(sample, seed=seed)
        match self.how:
            case "random":
                return replace(opening, messages=(Message("user", (str(next(COUNT)),)),))
            case "indices":
                return replace(opening, views=tuple(replace(view, index=view.index + 1) for view in opening.views))
            case "dangling":
                return replace(opening, messages=(Message("user", (ViewPart(9),)),))
            case "mute":
                return replace(opening, messages=())
        return opening

    async def step(self, message: Message) -> StepResult:
        if self.how == "raises":
            raise KeyError("oops")
        if self.how == "none":
            return None  # type: ignore[return-value]
        if self.how == "endless":
            return replace(await self._again(message), stop=None, observation=Observation((Message("user", ("go",)),)))
        result = await super().step(message)
        return replace(result, observation=Observation((Message("user", ("x",)),))) if self.how == "both" else result

    async def _again(self, message: Message) -> StepResult:
        await super().reset(SAMPLE, seed=0)
        return await super().step(message)


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("random", "two different observations"),
        ("indices", "do not count on"),
        ("dangling", "not announced"),
        ("mute", "without messages"),
        ("raises", "KeyError"),
        ("none", "NoneType"),
        ("endless", "did not end"),
        ("both", "exactly when it has no stop"),
    ],
)
def test_each_broken_environment_is_told_why(how: str, problem: str):
    with pytest.raises(PluginError, match=problem):
        check_env(Broken(how), SAMPLE)


def test_what_is_no_environment_is_told_so():
    fake: Any = np.zeros(1)
    with pytest.raises(PluginError, match="lacks one of"):
        check_env(fake, SAMPLE)
