"""The cost penalty: any tool's views cost their tokens, and only those who are right pay unless all do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.errors import RecipeError
from agentvision.geometry import Affine
from agentvision.rewards import CostPenalty, RatioPenalty, Rewards
from agentvision.train.advantages import group_advantages
from agentvision.types import ToolError, View

FULL, FIRST = 2400, 600


def views(*tokens, tool="crop"):
    """A first view of a quarter, then one view of a tool for each number of tokens."""
    sources = ["first_view"] + [tool] * len(tokens)
    return tuple(
        View(k, f"h{k}", "o", Affine(), (56, 56), (112, 112), n, source)
        for k, (n, source) in enumerate(zip((FIRST, *tokens), sources, strict=True), start=1)
    )


async def values(penalty, group, *members):
    return [score.value for score in await penalty(group(*members))]


async def test_every_view_costs_its_share_of_the_full_image(trajectory, group):
    members = [
        trajectory("x", correct=True, views=views(*tokens), full_tokens=FULL)
        for tokens in ((), (FULL,), (240,), (240, 120))
    ]
    got = await values(CostPenalty(price=0.1), group, *members)
    assert got == pytest.approx([-0.025, -0.125, -0.035, -0.04])
    assert await values(CostPenalty(price=0.1, per=1000), group, *members) == pytest.approx(
        [-0.06, -0.3, -0.084, -0.096]
    )


async def test_who_pays(trajectory, group):
    members = [trajectory("x", correct=c, views=views(FULL), full_tokens=FULL) for c in (True, False, None)]
    assert await values(CostPenalty(price=0.4), group, *members) == [-0.5, 0.0, 0.0]
    assert await values(CostPenalty(price=0.4, charge="all"), group, *members) == [-0.5, -0.5, -0.5]


async def test_a_failed_call_shows_nothing_and_costs_nothing(trajectory, group):
    failed = trajectory("x", correct=True, tool_error=ToolError.FAILED, views=views(), full_tokens=FULL)
    plain = trajectory("x", correct=True, views=views(), full_tokens=FULL)
    first, second = await values(CostPenalty(), group, failed, plain)
    assert first == second


async def test_without_images_nothing_costs_and_without_their_full_price_nothing_is_said(trajectory, group):
    text_only = trajectory("x", correct=True)
    unknown = trajectory("x", correct=True, views=views())
    scores = await CostPenalty()(group(text_only, unknown))
    assert scores[0].value == 0.0
    assert scores[1].value is None and "set per" in scores[1].reason
    assert await values(CostPenalty(per=600), group, unknown) == [-0.1]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=8))
async def test_where_every_look_is_at_the_original_it_trains_as_the_constant_penalty(trajectory, group, kinds):
    """Both prices on the same group give the same advantages: the first view's share cancels."""
    members = group(
        *(trajectory("x", correct=c, looked=h, views=views(*([FULL] if h else [])), full_tokens=FULL) for c, h in kinds)
    )
    totals = []
    for penalty in (CostPenalty(price=0.1, charge="all"), RatioPenalty(rule="all", amount=0.1)):
        scores = await penalty(members)
        totals.append(
            group_advantages([t.correct + s.value for t, s in zip(members.trajectories, scores, strict=True)])
        )
    if totals[0].signal and totals[1].signal:
        assert totals[0].advantages_G == pytest.approx(totals[1].advantages_G, abs=1e-6)


async def test_where_nobody_is_right_the_cheapest_failure_is_no_better(trajectory, group):
    members = [trajectory("x", correct=False, views=v, full_tokens=FULL) for v in (views(), views(FULL))]
    assert len(set(await values(CostPenalty(), group, *members))) == 1


def test_it_asks_for_a_judge_only_when_it_needs_one():
    with pytest.raises(RecipeError, match="needs a reward that judges correctness"):
        Rewards.from_config([{"cost_penalty": {}}])
    rewards = Rewards.from_config([{"cost_penalty": {"charge": "all", "per": 256}}])
    assert rewards.parts[0].group and rewards.parts[0].reward == CostPenalty(per=256, charge="all")


@pytest.mark.parametrize(
    "settings", [{"price": -1.0}, {"price": float("nan")}, {"per": 0}, {"per": "image"}, {"charge": "right"}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CostPenalty(**settings)
    with pytest.raises(RecipeError, match="cost_penalty"):
        Rewards.from_config([{"accuracy": {}}, {"cost_penalty": settings}])
