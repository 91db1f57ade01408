"""From a recipe's maps to rewards: what is built, and every problem named at once."""

import asyncio
import textwrap
from dataclasses import dataclass
from typing import Annotated, Literal

import annotated_types
import pydantic
import pytest

from agentvision.errors import RecipeError
from agentvision.rewards import Accuracy, Format, RatioPenalty, Rewards, reward
from agentvision.rewards._config import settings_of
from agentvision.rewards.compose import WeightedPart


def build(*specs):
    return Rewards.from_config(specs)


def problems(*specs) -> list[str]:
    with pytest.raises(RecipeError) as error:
        build(*specs)
    return str(error.value).splitlines()


async def test_the_papers_rewards():
    rewards = build(
        {"accuracy": {"rule": ["exact", "number"], "tolerance": 0.05}},
        {"format": {"weight": 0.5, "timeout_s": 5}},
        {"ratio_penalty": {"rule": "released", "threshold": 0.25, "amount": 1}},
    )
    assert rewards.names == ("accuracy", "format", "ratio_penalty")
    assert [part.weight for part in rewards.parts] == [1.0, 0.5, 1.0]
    assert [part.timeout_s for part in rewards.parts] == [Accuracy.timeout_s, 5.0, 30.0]
    assert [part.group for part in rewards.parts] == [False, False, True]
    assert rewards.parts[0].reward == Accuracy(rule=("exact", "number"), tolerance=0.05)
    assert rewards.parts[1].reward == Format()
    assert rewards.parts[2].reward == RatioPenalty(rule="released", threshold=0.25, amount=1.0)
    assert rewards.judge is rewards.parts[0]


def test_settings_may_be_left_out():
    assert build({"accuracy": None}, {"format": {}}).names == ("accuracy", "format")
    assert build().parts == ()


def test_all_problems_come_at_once():
    lines = problems(
        {"acuracy": {}},
        {"accuracy": {"ruel": "exact", "tolerance": "much", "weight": "heavy"}},
        {"ratio_penalty": {"threshold": 3}},
        {"format": ["weight", 1]},
        {"a": {}, "b": {}},
        "format",
        {"ratio_penalty": {"rule": "papre", "weight": True}},
        {"accuracy": {"weight": float("nan")}},
        {"accuracy": {"timeout": 3}},
    )
    expected = [
        ("rewards.0.acuracy: ", "Did you mean 'accuracy'?"),
        ("rewards.1.accuracy.weight: 'heavy' is not a number", ""),
        ("rewards.1.accuracy.ruel: there is no setting 'ruel'.", "Did you mean 'rule'?"),
        ("rewards.1.accuracy.tolerance: ", "not 'much'"),
        ("rewards.2.ratio_penalty: threshold is 3", "between 0 and 1"),
        ("rewards.3.format: ['weight', 1] is not a map of settings", ""),
        ("rewards.4: ", "is not a map of one name"),
        ("rewards.5: 'format' is not a map of one name", ""),
        ("rewards.6.ratio_penalty.weight: True is not a number", ""),
        ("rewards.6.ratio_penalty.rule: ", "'papre'"),
        ("rewards.7.accuracy: weight is nan", ""),
        ("rewards.8.accuracy.timeout: ", "Did you mean 'timeout_s'?"),
    ]
    assert len(lines) == len(expected), lines
    for line, (start, part) in zip(lines, expected, strict=True):
        assert line.startswith(start), line
        assert part in line, line


def test_composition_problems_are_recipe_errors():
    assert "needs a reward that judges correctness" in problems({"ratio_penalty": {}})[0]
    assert "stands there 2 times" in problems({"format": {}}, {"format": {}})[0]


@pytest.fixture
def plugin(tmp_path):
    """Write a file and give the name of one of its attributes."""

    def write(source: str, attribute: str) -> str:
        path = tmp_path / "my_rewards.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return f"{path}:{attribute}"

    return write


FUNCTIONS = """
    from agentvision.rewards import reward
    from agentvision.types import Group, Trajectory

    @reward
    def brief(trajectory: Trajectory, *, limit: int = 4, label: str):
        return len(trajectory.answer) <= limit

    def plain(trajectory, limit: int = 4):
        return len(trajectory.answer) <= limit

    class Slow:
        def __init__(self, *, limit: int) -> None:
            self.limit = limit
        async def __call__(self, group: Group):
            return [len(t.answer) <= self.limit for t in group.trajectories]

    class NoCall:
        pass

    instance = Slow(limit=3)
    number = 3
"""


async def test_your_own_by_file(plugin, trajectory, group):
    rewards = build(
        {plugin(FUNCTIONS, "brief"): {"limit": 3, "label": "x", "weight": 2}},
        {plugin(FUNCTIONS, "plain"): {"limit": 9}},
        {plugin(FUNCTIONS, "Slow"): {"limit": 4}},
        {plugin(FUNCTIONS, "instance"): {"weight": 0}},
    )
    assert rewards.names == ("brief", "plain", "Slow", "instance")
    [scored] = (await rewards.score(group(trajectory("blue")))).trajectories
    assert {name: score.value for name, score in scored.scores.items()} == {
        "brief": 0.0,
        "plain": 1.0,
        "Slow": 1.0,
        "instance": 0.0,
    }
    assert scored.reward == 2.0


@pytest.mark.parametrize(
    ("attribute", "settings", "problem"),
    [
        ("brief", {"label": "x", "limti": 3}, "limti: there is no setting 'limti'. Did you mean 'limit'?"),
        ("brief", {}, "the setting 'label' is missing"),
        ("brief", {"label": "x", "limit": "many"}, "'limit' must be a valid integer"),
        ("brief", {"label": "x", "trajectory": 1}, "trajectory: there is no setting"),
        ("plain", {"limit": 1.5}, "'limit' must be a valid integer"),
        ("Slow", {}, "the setting 'limit' is missing"),
        ("Slow", {"limit": None}, "'limit' must be a valid integer"),
        ("instance", {"limit": 3}, "this reward takes no settings"),
        ("NoCall", {}, "NoCall has neither `__call__"),
        ("number", {}, "3 is no reward"),
        ("missing", {}, "missing"),
    ],
)
def test_your_own_with_wrong_settings(plugin, attribute, settings, problem):
    [line] = problems({plugin(FUNCTIONS, attribute): settings})
    assert problem in line


@dataclass(frozen=True)
class Constrained:
    share: Annotated[float, annotated_types.Interval(ge=0, le=1)] = 0.5
    kind: Literal["a", "b"] = "a"

    async def __call__(self, trajectory):
        return 1.0


class Model(pydantic.BaseModel):
    share: float = pydantic.Field(default=0.5, ge=0, le=1)

    async def __call__(self, trajectory):
        return 1.0


class Free:
    def __init__(self, **anything):
        self.anything = anything

    def __call__(self, trajectory):
        return 1.0


@reward
def unannotated(trajectory, level=1):
    return level


@pytest.mark.parametrize(
    ("plugin", "settings", "problem"),
    [
        (Constrained, {"share": 0.25, "kind": "b"}, None),
        (Constrained, {"share": 2}, "'share' must be less than or equal to 1"),
        (Constrained, {"kind": "c"}, "'kind' must be 'a' or 'b'"),
        (Model, {"share": 0.25}, None),
        (Model, {"share": 2}, "less than or equal to 1"),
        (Free, {"whatever": [1, 2]}, None),
        (unannotated, {"level": 3}, None),
    ],
)
def test_types_are_checked_as_far_as_they_are_known(monkeypatch, plugin, settings, problem):
    monkeypatch.setattr("agentvision.plugins.load", lambda kind, name: plugin)
    if problem is None:
        build({"it": settings})
    else:
        assert problem in "\n".join(problems({"it": settings}))


async def test_a_recipe_may_give_a_function_more_time_than_it_asks_for(group, trajectory):
    @reward(timeout_s=0.05)
    async def slow(trajectory):
        await asyncio.sleep(0.2)
        return 1.0

    [late] = (await Rewards([WeightedPart(slow)]).score(group(trajectory("x")))).trajectories
    [done] = (await Rewards([WeightedPart(slow, timeout_s=30)]).score(group(trajectory("x")))).trajectories
    assert late.reward is None and done.reward == 1.0


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (RatioPenalty, ["rule", "threshold", "amount"]),
        (Accuracy, ["rule", "tolerance", "min_similarity", "maths_timeout_s"]),
        (Format, []),
        (unannotated, ["level"]),
        (lambda trajectory, limit=3: 1.0, ["limit"]),
        (Free, ["anything"]),
        (RatioPenalty(), []),
    ],
)
def test_what_a_plugin_can_be_set_to(found, names):
    assert list(settings_of(found)) == names
