"""Changing an environment or a set of tools by wrapping it.

Environment wrappers are environments around another one; tool wrappers give back tools. Each does one thing, and they
compose: `Recorder(Deadline(VisionEnv(...), seconds=60))`, `prefixed(filtered(tools, keep=…), "img_")`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentvision.env import Environment
from agentvision.errors import PluginError, suggest
from agentvision.tool import Tool
from agentvision.types import Message, Observation, ParsedTurn, ParseProblem, Sample, StepResult, StopReason, Turn


@dataclass
class EnvWrapper:
    """An environment that passes everything on to `inner`. Override what should differ."""

    inner: Environment

    async def reset(self, sample: Sample, *, seed: int) -> Observation:
        return await self.inner.reset(sample, seed=seed)

    async def step(self, message: Message) -> StepResult:
        return await self.inner.step(message)

    async def close(self) -> None:
        await self.inner.close()

    def __getattr__(self, name: str) -> Any:
        if name == "inner" or name.startswith("__"):  # while it is built or copied
            raise AttributeError(name)
        return getattr(self.inner, name)


@dataclass
class Deadline(EnvWrapper):
    """End the episode with `StopReason.DEADLINE` when a step is not done `seconds` after `reset` began."""

    seconds: float
    _until: float = field(default=0.0, init=False, repr=False)

    async def reset(self, sample: Sample, *, seed: int) -> Observation:
        self._until = time.monotonic() + self.seconds
        async with asyncio.timeout(self.seconds):
            return await self.inner.reset(sample, seed=seed)

    async def step(self, message: Message) -> StepResult:
        started = time.monotonic()
        clock = asyncio.timeout(max(0.0, self._until - started))
        try:
            async with clock:
                return await self.inner.step(message)
        except TimeoutError:
            if not clock.expired():
                raise
        unread = ParsedTurn(problem=ParseProblem.NO_ACTION, detail=f"the deadline of {self.seconds:g} s passed")
        return StepResult(Turn(message.text, unread, seconds=time.monotonic() - started), None, StopReason.DEADLINE)


@dataclass
class Recorder(EnvWrapper):
    """Keep what the environment said in this episode: `opening`, then `steps`."""

    opening: Observation | None = field(default=None, init=False)
    steps: list[StepResult] = field(default_factory=list, init=False)

    async def reset(self, sample: Sample, *, seed: int) -> Observation:
        self.opening, self.steps = None, []
        self.opening = await self.inner.reset(sample, seed=seed)
        return self.opening

    async def step(self, message: Message) -> StepResult:
        result = await self.inner.step(message)
        self.steps.append(result)
        return result


@dataclass
class MapObservation(EnvWrapper):
    """Pass every observation through `change`: add a reminder, translate, leave something out."""

    change: Callable[[Observation], Observation]

    async def reset(self, sample: Sample, *, seed: int) -> Observation:
        return self.change(await self.inner.reset(sample, seed=seed))

    async def step(self, message: Message) -> StepResult:
        result = await self.inner.step(message)
        return result if result.observation is None else replace(result, observation=self.change(result.observation))


@dataclass
class ShapeReward(EnvWrapper):
    """Add `reward(result)` to the environment's own reward of each step."""

    reward: Callable[[StepResult], float]

    async def step(self, message: Message) -> StepResult:
        result = await self.inner.step(message)
        return replace(result, reward=result.reward + self.reward(result))


def prefixed(tools: Iterable[Tool], prefix: str) -> tuple[Tool, ...]:
    """The tools under new names, so that two sets can stand side by side."""
    return tuple(replace(tool, name=prefix + tool.name) for tool in tools)


def filtered(tools: Sequence[Tool], *, keep: Iterable[str]) -> tuple[Tool, ...]:
    """The tools of these names, in this order. Raises `PluginError` for a name that is not there."""
    by_name = {tool.name: tool for tool in tools}
    chosen = []
    for name in keep:
        if name not in by_name:
            raise PluginError(f"there is no tool {name!r} to keep.{suggest(name, by_name)}")
        chosen.append(by_name[name])
    return tuple(chosen)


def with_timeout(tools: Iterable[Tool], *, timeout_s: float) -> tuple[Tool, ...]:
    """The tools with another deadline a call."""
    return tuple(replace(tool, timeout_s=timeout_s) for tool in tools)
