"""The agent loop: one episode, the G episodes of a group, many groups as they finish.

An episode is a coroutine: it waits for its policy, its tools, nothing else; there is no turn barrier. Whatever goes wrong
inside one is recorded as its `StopReason`; only cancellation passes through. The loop commits a tool's reply whole or not
at all: its tokens, images included, are counted before they are appended.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeAlias

from agentvision.env import Environment
from agentvision.errors import ImageError
from agentvision.images import ImageStore
from agentvision.policy import Completion, Policy, Request, SamplingParams
from agentvision.seeds import seed_for
from agentvision.tokens import token_count
from agentvision.types import (
    Group,
    Message,
    ParsedTurn,
    ParseProblem,
    Sample,
    Segment,
    StopReason,
    Trajectory,
    Turn,
    View,
)

MakeEnv: TypeAlias = Callable[[], Environment]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an episode may use. `context_tokens` counts all tokens, images included; None is no limit."""

    context_tokens: int | None = None
    deadline_s: float | None = None


class _Episode:
    """The state of one episode while it runs; becomes a `Trajectory`, whatever happens."""

    def __init__(self, sample: Sample, policy: Policy, store: ImageStore, sampling: SamplingParams, limits: Limits,
                 group: str, rollout: int, tools: Sequence[Mapping[str, object]]) -> None:  # fmt: skip
        self.sample, self.policy, self.store, self.sampling, self.limits = sample, policy, store, sampling, limits
        self.group, self.rollout, self.tools = group, rollout, tuple(tools)
        self.messages: tuple[Message, ...] = ()
        self.views: tuple[View, ...] = ()
        self.segments: tuple[Segment, ...] = ()
        self.tokens = 0
        """Of the segments."""
        self.turns: list[Turn] = []
        self.stop: StopReason | None = None
        self.answer: str | None = None
        self.error = ""
        self.full_tokens = 0
        self.told_tokens = 0
        """Of the prompt and the last turn, where only the policy's provider can count: 0 until it says so."""
        self.env_reward = 0.0
        self.blame = StopReason.ENV_ERROR
        """Whose code runs now: where an exception would be recorded."""

    async def run(self, env: Environment, seed: int) -> None:
        try:
            opening = await env.reset(self.sample, seed=seed)
        except ImageError as error:
            self.stop, self.error = StopReason.BAD_IMAGE, str(error)
            return
        self.full_tokens = opening.full_tokens
        if not self.commit(opening.messages, opening.views):
            self.stop = StopReason.CONTEXT
        while self.stop is None:
            started = time.perf_counter()
            completion = await self.complete()
            message = Message("assistant", (completion.text,))
            self.messages += (message,)
            self.segments += completion.segments
            self.told_tokens = sum(int(completion.usage.get(f"{k}_tokens", 0)) for k in ("prompt", "completion"))
            self.tokens += len(completion.ids)
            tokens = len(completion.ids) or int(completion.usage.get("completion_tokens", 0))
            seconds = time.perf_counter() - started
            if not completion.ended:
                unfinished = ParsedTurn(problem=ParseProblem.UNCLOSED, detail="token limit")
                self.turns.append(Turn(completion.text, unfinished, None, tokens, seconds, completion.usage))
                self.stop = StopReason.LENGTH
                return
            result = await env.step(message)
            said = result.turn
            turn = Turn(said.text, said.parsed, said.tool, tokens, seconds, completion.usage)
            self.env_reward += result.reward
            self.stop, self.answer = result.stop, result.answer
            if result.stop is None and result.observation is not None:
                shown = result.observation
                if not self.commit(shown.messages, shown.views):
                    self.stop = StopReason.CONTEXT
                    if turn.tool is not None:
                        turn = replace(turn, tool=replace(turn.tool, views=(), detail="not shown: no room left"))
            self.turns.append(turn)

    async def complete(self) -> Completion:
        room = self.sampling.max_tokens
        if self.limits.context_tokens is not None:
            there = self.told_tokens if self.policy.codec is None else self.tokens
            room = min(room, self.limits.context_tokens - there)
        self.blame = StopReason.POLICY_ERROR
        completion = await self.policy.complete(
            Request(
                session=f"{self.group}/{self.rollout}",
                group=self.group,
                messages=self.messages,
                views=self.views,
                segments=self.segments,
                store=self.store,
                sampling=self.sampling if room == self.sampling.max_tokens else replace(self.sampling, max_tokens=room),
                turn=len(self.turns),
                tools=self.tools,
            )
        )
        if not isinstance(completion, Completion):
            made = f"{type(self.policy).__name__}.complete()"
            raise TypeError(f"{made} returned {type(completion).__name__}, which is no Completion")
        self.blame = StopReason.ENV_ERROR
        return completion

    def commit(self, messages: Sequence[Message], views: Sequence[View]) -> bool:
        """Append an observation whole, or leave everything as it was and say False when it does not fit."""
        all_messages, all_views = (*self.messages, *messages), (*self.views, *views)
        codec, limit = self.policy.codec, self.limits.context_tokens
        segments = self.segments
        if codec is None:
            if limit is not None and self.told_tokens >= limit:
                return False
        else:
            if self.turns or self.segments:
                segments += codec.encode_next(self.segments, all_messages, all_views)
            else:
                segments = codec.encode_opening(all_messages, all_views)
            tokens = self.tokens + token_count(segments[len(self.segments) :])
            if limit is not None and tokens >= limit:
                return False
            self.tokens = tokens
        self.messages, self.views, self.segments = all_messages, all_views, segments
        return True

    def finish(self, seconds: float) -> Trajectory:
        return Trajectory(
            sample=replace(self.sample, images=()),
            turns=tuple(self.turns),
            messages=self.messages,
            views=self.views,
            stop=self.stop or StopReason.ENV_ERROR,
            answer=self.answer,
            segments=self.segments,
            originals=tuple(dict.fromkeys(view.original for view in self.views)),
            full_tokens=self.full_tokens,
            rollout=self.rollout,
            seconds=seconds,
            error=self.error,
            env_reward=self.env_reward,
        )


async def run_episode(
    sample: Sample,
    *,
    env: Environment,
    policy: Policy,
    store: ImageStore,
    sampling: SamplingParams,
    limits: Limits = Limits(),
    group: str = "",
    rollout: int = 0,
    tools: Sequence[Mapping[str, object]] = (),
) -> Trajectory:
    """Run one episode to its end. Never raises for what happens inside it; cancellation passes through."""
    episode = _Episode(sample, policy, store, sampling, limits, group or sample.id, rollout, tools)
    started = time.perf_counter()
    clock = asyncio.timeout(limits.deadline_s)
    try:
        async with clock:
            await episode.run(env, seed_for(sampling.seed, "env"))
    except TimeoutError as error:
        if clock.expired():
            episode.stop, episode.error = StopReason.DEADLINE, f"not done after {limits.deadline_s} s"
        else:
            episode.stop, episode.error = episode.blame, _describe(error)
    except Exception as error:
        episode.stop, episode.error = episode.blame, _describe(error)
    finally:
        for put_away in (lambda: policy.release(f"{episode.group}/{rollout}"), env.close):
            try:
                await put_away()
            except Exception as error:
                episode.error = episode.error or _describe(error)
    return episode.finish(time.perf_counter() - started)


def _describe(error: Exception) -> str:
    """One line that names the error, then where it came from; for logs and the journal, never for a model."""
    return f"{type(error).__name__}: {error}\n{''.join(traceback.format_tb(error.__traceback__)[-3:])}"


async def run_group(
    sample: Sample,
    *,
    size: int,
    make_env: MakeEnv,
    policy: Policy,
    store: ImageStore,
    sampling: SamplingParams,
    limits: Limits = Limits(),
    group: str = "",
    tools: Sequence[Mapping[str, object]] = (),
    gate: AbstractAsyncContextManager[object] | None = None,
) -> Group:
    """The `size` episodes of one sample, side by side, each with a seed of its own, made of the group's name.

    An episode enters `gate` before it begins, and leaves it when it has ended.
    """

    async def episode(k: int) -> Trajectory:
        async with gate or nullcontext():
            return await run_episode(
                sample,
                env=make_env(),
                policy=policy,
                store=store,
                sampling=replace(sampling, seed=seed_for(sampling.seed, group or sample.id, k)),
                limits=limits,
                group=group or sample.id,
                rollout=k,
                tools=tools,
            )

    trajectories = tuple(await asyncio.gather(*(episode(k) for k in range(size))))
    return Group(replace(sample, images=()), trajectories, name=group or sample.id)


async def rollout_groups(
    samples: Iterable[tuple[str, Sample]],
    *,
    size: int,
    make_env: MakeEnv,
    policy: Policy,
    store: ImageStore,
    sampling: SamplingParams,
    limits: Limits = Limits(),
    tools: Sequence[Mapping[str, object]] = (),
    at_once: int | None = None,
) -> AsyncIterator[Group]:
    """Groups of (name, sample) pairs in the order in which they finish, with at most `at_once` episodes in flight.

    Episodes begin in the order of the samples. The name must be unique among them (a sample may be drawn twice). Leaving
    the iterator early cancels the rest and frees what they held.
    """
    gate = None if at_once is None else asyncio.Semaphore(at_once)
    running: set[asyncio.Task[Group]] = set()
    for name, sample in samples:
        work = run_group(
            sample, size=size, make_env=make_env, policy=policy, store=store, sampling=sampling, limits=limits,
            group=name, tools=tools, gate=gate,
        )  # fmt: skip
        running.add(asyncio.create_task(work, name=f"group {name}"))
    try:
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            running.difference_update(done)
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
