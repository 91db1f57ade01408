"""Rollouts and their rewards for one step: groups until enough of them carry a signal.

Groups are scored as they finish, while others still run. Those whose totals are all equal move no weight; fresh prompts
are drawn in their place, for a bounded number of rounds. Whatever order groups finish in, they are handed on in the order
in which their prompts were drawn, so that a run can be repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from agentvision.seeds import seed_for
from agentvision.train.advantages import GroupAdvantages, group_advantages
from agentvision.train.prompts import PromptStream
from agentvision.types import Group, Sample

Rollout = Callable[[Sequence[tuple[str, Sample]], int], AsyncIterator[Group]]
"""From named prompts and a seed to their groups, in the order in which they finish."""
Scorer = Callable[[Group], Awaitable[Group]]


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    group: Group
    advantages: GroupAdvantages


@dataclass(frozen=True, slots=True)
class Collected:
    """The groups of one step, all that were rolled out, in the order of their prompts.

    `reward_s` is the time spent waiting for rewards when no rollout was running any more.
    """

    groups: tuple[ScoredGroup, ...]
    rounds: int
    rollout_s: float
    reward_s: float

    @property
    def with_signal(self) -> list[ScoredGroup]:
        return [scored for scored in self.groups if scored.advantages.signal]


async def collect(
    prompts: PromptStream,
    *,
    rollout: Rollout,
    score: Scorer,
    wanted: int,
    max_rounds: int,
    normalise: bool,
    seed: int,
    on_group: Callable[[Group], None] = lambda group: None,
) -> Collected:
    """Roll out and score groups until `wanted` carry a signal, or `max_rounds` rounds of fresh prompts are used up.

    `seed` is the step's. `on_group` hears of every scored group, for progress.
    """
    groups: list[ScoredGroup] = []
    rollout_s = reward_s = 0.0
    rounds = 0
    while (missing := wanted - sum(scored.advantages.signal for scored in groups)) and rounds <= max_rounds:
        named = [(f"{seed:x}.{rounds}.{k}", sample) for k, sample in enumerate(prompts.take(missing))]
        begun = time.perf_counter()
        tasks: list[asyncio.Task[Group]] = []
        try:
            async for group in rollout(named, seed_for(seed, rounds)):
                tasks.append(asyncio.create_task(_score(score, group, on_group)))
            rolled = time.perf_counter()
            finished = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        rollout_s += rolled - begun
        reward_s += time.perf_counter() - rolled
        place = {name: k for k, (name, _) in enumerate(named)}
        for group in sorted(finished, key=lambda g: place[g.name]):
            groups.append(ScoredGroup(group, group_advantages(group.rewards_G, normalise=normalise)))
        rounds += 1
    return Collected(tuple(groups), rounds, rollout_s, reward_s)


async def _score(score: Scorer, group: Group, on_group: Callable[[Group], None]) -> Group:
    scored = await score(group)
    on_group(scored)
    return scored
