"""The total reward of a group: named parts, their weights, and what becomes of a part that fails.

First every trajectory is scored by every reward of one trajectory, all at once; then the reward that judges correctness
fills `Trajectory.correct`; then group rewards see the whole group. The total is Σ weight · value, or None when a part
that has weight is invalid: such a trajectory leaves the baseline and the loss. An episode that failed through no fault
of the model is invalid in every part. What the environment itself paid is the part `env`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from agentvision.errors import RecipeError
from agentvision.rewards._boundary import as_score, score_group, score_trajectory
from agentvision.rewards.base import DEFAULT_TIMEOUT_S, FunctionReward, grading_key, reward_name, takes_group
from agentvision.rewards.schedule import Schedule
from agentvision.types import Group, Score, Trajectory

_log = logging.getLogger(__name__)

ENV_PART = "env"
"""The name of the environment's own reward among the scores."""


@dataclass(frozen=True)
class WeightedPart:
    """One reward of the total. Weight 0 keeps a part as a measurement: its score is recorded, and may be invalid."""

    reward: Callable[..., Any]
    """A `Reward` or a `GroupReward`."""
    weight: float | Schedule = 1.0
    """Factor on its score in the total; a schedule moves it during training."""
    name: str = ""
    """Under which its scores stand; empty takes the reward's own."""
    timeout_s: float = 0.0
    """Deadline of one call; 0 takes the reward's own, else the default."""
    group: bool = field(init=False)
    """Whether it scores groups."""

    def __post_init__(self) -> None:
        if not isinstance(self.weight, Schedule) and not math.isfinite(self.weight):
            raise ValueError(f"weight is {self.weight!r}; it is a finite number")
        object.__setattr__(self, "name", self.name or reward_name(self.reward))
        own = float(getattr(self.reward, "timeout_s", DEFAULT_TIMEOUT_S))
        if self.timeout_s and isinstance(self.reward, FunctionReward):
            object.__setattr__(self, "reward", replace(self.reward, timeout_s=self.timeout_s))
        object.__setattr__(self, "timeout_s", self.timeout_s or own)
        object.__setattr__(self, "group", takes_group(self.reward))

    def weight_at(self, step: int | None) -> float:
        """The weight in force when `step` steps of training are done; None: where its schedule ends."""
        if not isinstance(self.weight, Schedule):
            return self.weight
        return self.weight.final if step is None else self.weight.at(step)

    @property
    def judges_correctness(self) -> bool:
        return bool(getattr(self.reward, "judges_correctness", False))

    async def score(self, group: Group) -> list[Score]:
        """This part's score of each trajectory; a group reward reads the `correct` that stands there."""
        if not self.group:
            return await _score_each(self, group.trajectories)
        scores = await score_group(self.reward, group, name=self.name, timeout_s=self.timeout_s)
        return [_failure(t) or score for t, score in zip(group.trajectories, scores, strict=True)]

    async def close(self) -> None:
        """Free what the reward holds. Reports one that cannot, and raises nothing."""
        try:
            done = getattr(self.reward, "close", lambda: None)()
            if inspect.isawaitable(done):
                await done
        except Exception as error:
            _log.warning("reward %r could not be closed: %s: %s", self.name, type(error).__name__, error)


@dataclass(frozen=True)
class Rewards:
    """All rewards of a recipe. Raises `RecipeError` when their names clash or correctness has no one judge."""

    parts: Sequence[WeightedPart]
    judge: WeightedPart | None = field(init=False)
    """The part whose score fills `Trajectory.correct`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        problems = [
            f"rewards: {name!r} stands there {count} times" for name, count in Counter(self.names).items() if count > 1
        ]
        if ENV_PART in self.names:
            problems.append(f"rewards: the name {ENV_PART!r} is kept for what the environment itself pays")
        judges = [part for part in self.parts if part.judges_correctness]
        judges = [part for part in judges if part.weight] or judges
        if len(judges) > 1:
            problems.append(
                f"rewards: {' and '.join(repr(part.name) for part in judges)} both judge correctness; keep one, "
                "or give the other weight 0 to only measure it"
            )
        for part in self.parts:
            if getattr(part.reward, "needs_correctness", False) and not judges:
                problems.append(f"rewards: {part.name!r} needs a reward that judges correctness, such as 'accuracy'")
        if problems:
            raise RecipeError("\n".join(problems))
        object.__setattr__(self, "judge", judges[0] if judges else None)

    @classmethod
    def from_config(cls, specs: Sequence[Mapping[str, Mapping[str, Any] | None]]) -> Rewards:
        """Build from a recipe's list of one-key maps, `[{name: {weight: 1.0, **params}}, …]`.

        Names are looked up among the plug-ins (`agentvision.rewards`), or are `package.module:attribute` or
        `./file.py:attribute`. Raises `RecipeError` with every problem at once.
        """
        from agentvision.rewards._config import parts_from_config

        return cls(parts_from_config(specs))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    def scheduled(self, step: int) -> dict[str, float]:
        """The weights in force when `step` steps are done of the parts whose weight moves, by name."""
        return {part.name: part.weight_at(step) for part in self.parts if isinstance(part.weight, Schedule)}

    async def score(self, group: Group, *, step: int | None = None) -> Group:
        """The group with `scores`, `reward` and `correct` on every trajectory.

        Weights are those in force when `step` steps of training are done. None, as in an evaluation, takes those at the
        end of their schedules, so that totals compare whenever they were measured.
        What a reward does wrong (raising, hanging, rubbish) is an invalid score; nothing of it is raised here.
        """
        trajectories = group.trajectories
        singles = [part for part in self.parts if not part.group]
        columns = await asyncio.gather(*(part.score(group) for part in singles))
        scores: list[dict[str, Score]] = [
            {part.name: column[index] for part, column in zip(singles, columns, strict=True)}
            for index in range(len(trajectories))
        ]
        correct = [self._verdict(s) for s in scores]
        judged = tuple(
            t.with_scores(s, reward=None, correct=c) for t, s, c in zip(trajectories, scores, correct, strict=True)
        )
        groupwise = [part for part in self.parts if part.group]
        seen = replace(group, trajectories=judged)
        columns = await asyncio.gather(*(part.score(seen) for part in groupwise))
        for part, column in zip(groupwise, columns, strict=True):
            for s, score in zip(scores, column, strict=True):
                s[part.name] = score
        env_pays = any(t.env_reward for t in trajectories)
        return replace(
            group,
            trajectories=tuple(
                self._total(t, s, c, env_pays=env_pays, step=step)
                for t, s, c in zip(trajectories, scores, correct, strict=True)
            ),
        )

    def check(self) -> None:
        """Raise an `AgentVisionError` for what would make every score of a part invalid."""
        for part in self.parts:
            getattr(part.reward, "check", lambda: None)()

    def metrics(self) -> dict[str, dict[str, float]]:
        """What the parts counted since the last call, by part; for `summary`."""
        found = {part.name: _ask(part, "metrics") for part in self.parts}
        return {name: counts for name, counts in found.items() if counts}

    def summary(self, counted: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
        """The `metrics()` of every process made one: counts added up, and what the parts make of the sums."""
        summed: dict[str, Counter[str]] = {}
        for counts in counted:
            for name, values in counts.items():
                summed.setdefault(name, Counter()).update(values)
        return {
            part.name: _ask(part, "summary", dict(summed[part.name]), otherwise=summed[part.name])
            for part in self.parts
            if part.name in summed
        }

    async def close(self) -> None:
        """Free what the parts hold. One that cannot is reported and keeps none of the others from it."""
        for part in self.parts:
            await part.close()

    def _verdict(self, scores: Mapping[str, Score]) -> bool | None:
        score = scores.get(self.judge.name) if self.judge else None
        return None if score is None or score.value is None else score.value >= 0.5

    def _total(
        self,
        trajectory: Trajectory,
        scores: Mapping[str, Score],
        correct: bool | None,
        *,
        env_pays: bool,
        step: int | None,
    ) -> Trajectory:
        weights = {part.name: part.weight_at(step) for part in self.parts}
        in_order = {name: scores[name] for name in weights}
        if env_pays:
            in_order[ENV_PART] = _failure(trajectory) or as_score(trajectory.env_reward)
            weights[ENV_PART] = 1.0
        total: float | None = 0.0
        for name, weight in weights.items():
            value = in_order[name].value
            if not weight:
                continue
            total = None if total is None or value is None else total + weight * value
        if _failure(trajectory) or (total is not None and not math.isfinite(total)):
            total = None
        return trajectory.with_scores(in_order, reward=total, correct=correct)


def _ask(
    part: WeightedPart, hook: str, *arguments: Any, otherwise: Mapping[str, float] = MappingProxyType({})
) -> dict[str, float]:
    """A part's numbers by name, from a hook that it may have. One that fails costs its numbers, not the run."""
    function = getattr(part.reward, hook, None)
    try:
        found = otherwise if function is None else function(*arguments)
        return {str(name): float(value) for name, value in found.items()}
    except Exception as error:
        _log.warning("reward %r: %s() failed: %s: %s", part.name, hook, type(error).__name__, error)
        return dict(otherwise)


async def _score_each(part: WeightedPart, trajectories: Sequence[Trajectory]) -> list[Score]:
    """One part's score of each trajectory; those with equal grading keys are scored once."""
    keys: list[Hashable] = []
    jobs: dict[Hashable, Trajectory] = {}
    for index, trajectory in enumerate(trajectories):
        key = grading_key(part.reward, trajectory)
        keys.append((key,) if key is not None else index)
        if not _failure(trajectory):
            jobs.setdefault(keys[-1], trajectory)
    scored = await asyncio.gather(
        *(
            score_trajectory(part.reward, trajectory, name=part.name, timeout_s=part.timeout_s)
            for trajectory in jobs.values()
        )
    )
    by_key = dict(zip(jobs, scored, strict=True))
    return [_failure(t) or by_key[key] for t, key in zip(trajectories, keys, strict=True)]


def _failure(trajectory: Trajectory) -> Score | None:
    """The invalid score of an episode that the policy or the environment broke; None for all others."""
    if not trajectory.stop.broken:
        return None
    return Score.invalid(f"the episode failed ({trajectory.stop.value}): {trajectory.error[:200]}")
