"""What a reward is: something callable that scores one trajectory, or one group.

Which of the two is read off its first parameter: annotated `Group` (or named `group`) makes it a group reward, anything
else a reward of one trajectory. Classes take their settings as keyword arguments; a plain function becomes a reward by
`@reward`, its parameters after the first being its settings. Either may be sync or async. A reward may also have

- `name`: under which its scores stand; without, the recipe's name for it;
- `judges_correctness = True`: its score says whether the answer is right (from .5 on) and fills `Trajectory.correct`;
- `needs_correctness = True`: it reads `Trajectory.correct`, so a recipe without a judge of correctness is refused;
- `timeout_s`: its deadline for one call;
- `grading_key(trajectory)`: trajectories of a group with equal keys get one score, computed once (None: by itself);
- `check()`: before a run; raises an `AgentVisionError` for what would make every score invalid, such as a missing key;
- `metrics()`: what it counted since the last call, numbers by name that add up over processes; written as `NAME/…`;
- `summary(counts)`: what is written in place of those counts, once summed; here counts become shares;
- `close()`, sync or async: nothing more will be scored.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Concatenate, Generic, Protocol, TypeVar, overload

from agentvision.rewards._boundary import as_score, as_scores, invoke
from agentvision.types import Group, Score, Trajectory

DEFAULT_TIMEOUT_S = 30.0

Subject = TypeVar("Subject", Trajectory, Group, contravariant=True)
Result = TypeVar("Result", Score, "list[Score]", covariant=True)


class Reward(Protocol):
    """Scores one trajectory."""

    async def __call__(self, trajectory: Trajectory, /) -> Score: ...


class GroupReward(Protocol):
    """Scores all trajectories of one prompt together, after their `correct` is known (None: it is not)."""

    async def __call__(self, group: Group, /) -> list[Score]: ...


@dataclass(frozen=True)
class FunctionReward(Generic[Subject, Result]):
    """A plain function as a reward. What it returns is made a `Score` (of a group: a list of them)."""

    function: Callable[..., Any]
    name: str
    group: bool
    params: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = DEFAULT_TIMEOUT_S
    judges_correctness: bool = False
    needs_correctness: bool = False

    async def __call__(self, subject: Subject, /) -> Result:
        result = await invoke(self.function, subject, name=self.name, timeout_s=self.timeout_s, **self.params)
        if isinstance(subject, Group):
            return as_scores(result, len(subject.trajectories))  # type: ignore[return-value]
        return as_score(result)  # type: ignore[return-value]

    def configure(self, **params: Any) -> FunctionReward[Subject, Result]:
        """The same reward with other settings."""
        return replace(self, params={**self.params, **params})


@overload
def reward(function: Callable[Concatenate[Group, ...], Any], /) -> FunctionReward[Group, list[Score]]: ...
@overload
def reward(function: Callable[Concatenate[Trajectory, ...], Any], /) -> FunctionReward[Trajectory, Score]: ...
@overload
def reward(
    *,
    name: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    judges_correctness: bool = False,
    needs_correctness: bool = False,
) -> Callable[[Callable[..., Any]], FunctionReward[Any, Any]]: ...
def reward(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    judges_correctness: bool = False,
    needs_correctness: bool = False,
) -> Any:
    """Make a reward of `f(trajectory) -> float | bool | Score` or of `f(group) -> list` of them, sync or async.

    Used bare (`@reward`) or with settings (`@reward(name="brief", timeout_s=5)`). The function's further parameters are
    set by the recipe.
    """

    def wrap(f: Callable[..., Any]) -> FunctionReward[Any, Any]:
        return FunctionReward(
            function=f,
            name=name or getattr(f, "__name__", type(f).__name__),
            group=takes_group(f),
            timeout_s=timeout_s,
            judges_correctness=judges_correctness,
            needs_correctness=needs_correctness,
        )

    return wrap if function is None else wrap(function)


def takes_group(target: Callable[..., Any]) -> bool:
    """Whether a reward's first parameter is a group: by its annotation, and without one by the name `group`.

    Of a class, its instances are meant.
    """
    if isinstance(target, FunctionReward):
        return target.group
    own = inspect.isclass(target)
    try:
        parameters = inspect.signature(target.__call__ if own else target).parameters.values()
        first = next(islice(parameters, int(own), None), None)  # after `self`
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    if first is None:
        return False
    if first.annotation is inspect.Parameter.empty:
        return first.name == "group"
    annotation = first.annotation
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.strip("'\"").rpartition(".")[2] == "Group"


def reward_name(target: object) -> str:
    """The name under which a reward's scores stand when the recipe gives none."""
    name = getattr(target, "name", None) or getattr(target, "__name__", None)
    return name if isinstance(name, str) else type(target).__name__


def grading_key(target: object, trajectory: Trajectory) -> Hashable | None:
    """The reward's key of a trajectory, or None when it has none: then the trajectory is scored by itself."""
    key = getattr(target, "grading_key", None)
    if key is None:
        return None
    try:
        value = key(trajectory)
        hash(value)
    except Exception:  # a key only saves work: without one the score itself is still asked for
        return None
    return value
