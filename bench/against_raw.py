"""Episodes through the agent loop, and the very same turns by vLLM alone: seconds of both, round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentvision import build
from agentvision.data import open_questions
from agentvision.engine.in_process import InProcessEngine
from agentvision.engine.prompt import params_of, prompt_of
from agentvision.engine.types import Ask, Sampled
from agentvision.images import ImageStore
from agentvision.policies.vllm import VLLMPolicy
from agentvision.rollout import rollout_groups
from agentvision.types import Group

SIZE = 16
"""Episodes of a group."""


@dataclass
class Recording:
    """An engine that notes what it was asked, and what it said."""

    engine: Any
    asks: list[Ask] = field(default_factory=list)
    said: list[Sampled] = field(default_factory=list)

    async def sample(self, ask: Ask) -> Sampled:
        sampled = await self.engine.sample(ask)
        self.asks.append(ask)
        self.said.append(sampled)
        return sampled

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


async def roll_out(policy: Any, recipe: Any, *, groups: int, start: int = 0) -> tuple[float, list[Group]]:
    """Seconds and groups of one pass over the same questions, on a store of its own."""
    tools, store = build.build_tools(recipe), ImageStore()
    samples = open_questions(recipe, "train")
    named = [(f"bench{k}", samples[k]) for k in range(start, start + groups)]
    began = time.perf_counter()
    found = [
        group
        async for group in rollout_groups(
            named,
            size=SIZE,
            make_env=build.env_maker(recipe, store=store, vision=policy.codec.vision, tools=tools),
            policy=policy,
            store=store,
            sampling=build.sampling_of(recipe, seed=1),
            limits=build.limits_of(recipe),
        )
    ]
    return time.perf_counter() - began, found


async def raw_generate(engine: InProcessEngine, asks: Sequence[Ask]) -> tuple[float, float]:
    """Seconds that vLLM takes for these turns, given all at once with their prompts ready; and those of the processor."""
    room = engine.settings.context_tokens
    prepared = [(prompt_of(ask, engine._codec), params_of(ask, room)) for ask in asks]

    def generate() -> tuple[float, float]:
        core = engine._engine
        began, cpu = time.perf_counter(), time.process_time()
        for k, (prompt, params) in enumerate(prepared):
            core.add_request(f"raw{k}", prompt, params)
        while core.has_unfinished_requests():
            core.step()
        return time.perf_counter() - began, time.process_time() - cpu

    return await engine._do(generate)


@dataclass
class Against:
    """The loop and raw `generate`, round by round: seconds, those of the processor, and steps of the engine.

    `recording` is of the last loop.
    """

    recording: Recording
    loop_s: list[float] = field(default_factory=list)
    raw_s: list[float] = field(default_factory=list)
    loop_cpu_s: list[float] = field(default_factory=list)
    raw_cpu_s: list[float] = field(default_factory=list)
    event_loop_s: list[float] = field(default_factory=list)
    """The processor's time of the event loop's thread: environments, ledger, prompts; tools have threads of their own."""
    loop_steps: list[int] = field(default_factory=list)
    raw_steps: list[int] = field(default_factory=list)

    def figures(self, suffix: str = "") -> dict[str, Any]:
        return {
            f"overhead_ratio{suffix}": min(self.raw_s) / min(self.loop_s),
            f"overhead_ratio{suffix}_rounds": [raw / loop for raw, loop in zip(self.raw_s, self.loop_s)],
            f"overhead_ratio{suffix}_median": statistics.median(self.raw_s) / statistics.median(self.loop_s),
            f"overhead_cpu_ratio{suffix}": min(self.raw_cpu_s) / min(self.loop_cpu_s),
            f"event_loop_share{suffix}": min(self.event_loop_s) / min(self.raw_cpu_s),
            f"engine_steps{suffix}": statistics.median(self.loop_steps),
            f"engine_steps_raw{suffix}": statistics.median(self.raw_steps),
        }


async def against_raw(policy: VLLMPolicy, recipe: Any, *, groups: int, rounds: int) -> Against:
    """Both in turns."""
    engine = policy.engine
    assert isinstance(engine, InProcessEngine)
    policy.engine = recording = Recording(engine)  # type: ignore[assignment]
    await roll_out(policy, recipe, groups=4)
    found, step, steps = Against(recording), engine._engine.step, 0

    def counted() -> Any:
        nonlocal steps
        steps += 1
        return step()

    engine._engine.step = counted
    for _ in range(rounds):
        recording.asks.clear()
        recording.said.clear()
        await engine.reset_caches()
        steps, cpu, of_thread = 0, time.process_time(), time.thread_time()
        found.loop_s.append((await roll_out(policy, recipe, groups=groups))[0])
        found.loop_cpu_s.append(time.process_time() - cpu)
        found.event_loop_s.append(time.thread_time() - of_thread)
        found.loop_steps.append(steps)
        asks = sorted(recording.asks, key=lambda ask: ask.turn)  # first turns first, as a batch of prompts would
        await engine.reset_caches()
        seconds, cpu = await raw_generate(engine, asks)
        found.raw_s.append(seconds)
        found.raw_cpu_s.append(cpu)
        found.raw_steps.append(steps - found.loop_steps[-1])
    return found


def rows_of(r: dict[str, Any], suffix: str, what: str) -> list[tuple[str, str, str]]:
    rounds = sorted(r[f"overhead_ratio{suffix}_rounds"])
    least, middle, most = rounds[0], statistics.median(rounds), rounds[-1]
    steps = f"{r[f'engine_steps{suffix}']:.0f}, {r[f'engine_steps_raw{suffix}']:.0f}"
    return [
        (f"{what}: least time of each", f"{r[f'overhead_ratio{suffix}']:.3f}", "≥ 0.95"),
        (f"… the processor's time, least of {len(rounds)} rounds", f"{r[f'overhead_cpu_ratio{suffix}']:.3f}", ""),
        ("… the event loop's part of it, in raw's", f"{100 * r[f'event_loop_share{suffix}']:.1f} %", ""),
        ("… round by round: least, median, most", f"{least:.2f}, {middle:.2f}, {most:.2f}", ""),
        ("… steps of the engine, the loop's and raw's", steps, ""),
    ]
