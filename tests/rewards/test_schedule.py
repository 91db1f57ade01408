"""A weight that moves: its curve, what it does to totals, and its form in a recipe."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.errors import RecipeError
from agentvision.recipe.parts import WeightSchedule
from agentvision.rewards import Accuracy, Rewards, Schedule, WeightedPart, reward

weights = st.floats(-10, 10)
schedules = st.builds(
    Schedule,
    initial=weights,
    final=weights,
    steps=st.integers(1, 50),
    after=st.integers(0, 50),
    shape=st.sampled_from(["linear", "cosine"]),
)


@given(schedules, st.integers(0, 200))
def test_it_stays_moves_one_way_and_stays(schedule, step):
    low, high = sorted((schedule.initial, schedule.final))
    assert low - 1e-9 <= schedule.at(step) <= high + 1e-9
    if step <= schedule.after:
        assert schedule.at(step) == schedule.initial
    if step >= schedule.after + schedule.steps:
        assert schedule.at(step) == schedule.final
    change = schedule.at(step + 1) - schedule.at(step)
    assert change * (schedule.final - schedule.initial) >= -1e-9


def test_the_shapes():
    linear = Schedule(initial=0.0, final=0.5, steps=4, after=2)
    assert [linear.at(k) for k in range(8)] == [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.5]
    cosine = Schedule(initial=1.0, final=0.0, steps=4, shape="cosine")
    assert [cosine.at(k) for k in range(6)] == pytest.approx([1, 0.853553, 0.5, 0.146447, 0, 0], abs=1e-6)


@reward
def one(trajectory):
    return 1.0


@reward
def broken(trajectory):
    raise RuntimeError("gone")


async def test_totals_take_the_weight_in_force_and_without_a_step_the_last(trajectory, group):
    rewards = Rewards([WeightedPart(one, weight=Schedule(0.0, 2.0, steps=2)), WeightedPart(one, weight=0.5, name="b")])
    for step, total in ((0, 0.5), (1, 1.5), (2, 2.5), (99, 2.5), (None, 2.5)):
        [scored] = (await rewards.score(group(trajectory("x")), step=step)).trajectories
        assert scored.reward == total
        assert scored.scores["one"].value == 1.0
    assert rewards.scheduled(1) == {"one": 1.0}


async def test_a_part_may_fail_while_it_weighs_nothing(trajectory, group):
    rewards = Rewards([WeightedPart(broken, weight=Schedule(0.0, 1.0, steps=1))])
    [first] = (await rewards.score(group(trajectory("x")), step=0)).trajectories
    [later] = (await rewards.score(group(trajectory("x")), step=1)).trajectories
    assert first.reward == 0.0 and later.reward is None


def test_who_judges_does_not_depend_on_the_step():
    """A judge whose weight starts or ends at 0 is still the judge; two that ever weigh are one too many."""
    moving, measured = Schedule(0.0, 1.0, steps=5), WeightedPart(Accuracy(), weight=0, name="measured")
    judge = WeightedPart(Accuracy(), weight=moving, name="moving")
    assert Rewards([measured, judge]).judge is judge
    fading = WeightedPart(Accuracy(), weight=Schedule(1.0, 0.0, steps=5), name="fading")
    with pytest.raises(RecipeError, match="both judge correctness"):
        Rewards([fading, WeightedPart(Accuracy())])


def test_it_comes_from_a_recipe():
    [part] = Rewards.from_config([{"format": {"weight": {"initial": 0, "final": 0.5, "steps": 3}}}]).parts
    assert part.weight == Schedule(initial=0, final=0.5, steps=3)
    assert [part.weight_at(step) for step in (0, 3, None)] == [0, 0.5, 0.5]


def test_the_recipes_form_has_the_same_settings():
    mine = {f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(Schedule)}
    theirs = {n: None if f.is_required() else f.default for n, f in WeightSchedule.model_fields.items()}
    assert mine == theirs


@pytest.mark.parametrize(
    ("weight", "problem"),
    [
        ({}, "format.weight: the setting 'initial' is missing"),
        (
            {"initial": 0, "finl": 1, "steps": 3},
            "format.weight.finl: there is no setting 'finl'. Did you mean 'final'?",
        ),
        ({"initial": 0, "final": 1, "steps": 0}, "at least 1"),
        ({"initial": 0, "final": 1, "steps": 1, "after": -1}, "after -1"),
        ({"initial": 0, "final": float("inf"), "steps": 1}, "finite"),
        ({"initial": 0, "final": "much", "steps": 1}, "format.weight.final: 'final' must be a valid number"),
        ({"initial": 0, "final": 1, "steps": 1, "shape": "square"}, "format.weight.shape"),
    ],
)
def test_wrong_settings_are_named(weight, problem):
    with pytest.raises(RecipeError) as error:
        Rewards.from_config([{"format": {"weight": weight, "strict": True}}])
    assert problem in str(error.value) and "format.strict: there is no setting" in str(error.value)
