"""Composition: totals, invalid parts, the order of things, what parts count."""

import asyncio

import pytest

from agentvision.errors import RecipeError
from agentvision.rewards import Accuracy, Format, RatioPenalty, Rewards, WeightedPart, reward
from agentvision.types import Score, StopReason


def constant(value, name="constant", **settings):
    return reward(name=name, **settings)(lambda trajectory: value)


async def score(group, *parts):
    return (await Rewards(parts).score(group)).trajectories


async def test_the_papers_reward(trajectory, group):
    """R = accuracy + 0.5 format + penalty, by hand: r = 1/2 ≥ .2, so who looked closer pays."""
    rollouts = group(
        trajectory("blue"),
        trajectory("blue", looked=True),
        trajectory("red"),
        trajectory("red", looked=True),
        trajectory(None),
    )
    rewards = Rewards([WeightedPart(Accuracy()), WeightedPart(Format(), weight=0.5), WeightedPart(RatioPenalty())])
    scored = await rewards.score(rollouts)
    assert [t.reward for t in scored.trajectories] == pytest.approx([1.5, 1.4, 0.5, 0.4, 0.0])
    assert [t.correct for t in scored.trajectories] == [True, True, False, False, False]
    assert list(scored.trajectories[0].scores) == ["accuracy", "format", "ratio_penalty"]
    assert await rewards.score(scored) == scored


async def test_an_invalid_part_makes_the_total_none_and_leaves_siblings_alone(trajectory, group):
    @reward
    def picky(trajectory):
        return Score.invalid("unsure") if trajectory.answer == "red" else 1

    scored = await score(group(trajectory("blue"), trajectory("red")), WeightedPart(picky))
    assert [t.reward for t in scored] == [1.0, None]
    assert scored[1].scores["picky"] == Score.invalid("unsure")


async def test_weight_zero_measures_only(trajectory, group):
    broken, fine = constant(None, "broken"), constant(3, "fine")
    [t] = await score(group(trajectory("x")), WeightedPart(broken, weight=0), WeightedPart(fine, weight=2))
    assert t.reward == 6.0
    assert not t.scores["broken"].valid


async def test_group_rewards_see_correct_and_invalid_members(trajectory, group):
    seen = []

    @reward(judges_correctness=True)
    def verdict(trajectory):
        return {"right": 1, "half": 0.5, "wrong": 0, "unknown": Score.invalid("?")}[trajectory.answer]

    @reward
    def watch(group):
        seen.extend((t.correct, t.scores["verdict"].value, t.reward) for t in group.trajectories)
        return [0] * len(group.trajectories)

    answers = ["right", "half", "wrong", "unknown"]
    scored = await score(group(*map(trajectory, answers)), WeightedPart(watch), WeightedPart(verdict))
    assert seen == [(True, 1.0, None), (True, 0.5, None), (False, 0.0, None), (None, None, None)]
    assert [t.correct for t in scored] == [True, True, False, None]
    assert list(scored[0].scores) == ["watch", "verdict"]


async def test_invalid_correctness_leaves_r(trajectory, group):
    """With the unknown one counted as right or wrong, r would not be 0 and the penalty would fall elsewhere."""

    @reward(judges_correctness=True)
    def verdict(trajectory):
        return Score.invalid("?") if trajectory.answer == "unknown" else 1

    members = group(trajectory("unknown"), trajectory("right", looked=True))
    scored = await score(members, WeightedPart(verdict), WeightedPart(RatioPenalty(threshold=0.6)))
    assert [t.reward for t in scored] == [None, 1.0]
    assert [t.scores["ratio_penalty"].value for t in scored] == [0.0, 0.0]


@pytest.mark.parametrize("stop", [StopReason.POLICY_ERROR, StopReason.ENV_ERROR])
async def test_an_episode_that_broke_is_invalid_in_every_part(trajectory, group, stop):
    parts = [WeightedPart(Accuracy()), WeightedPart(RatioPenalty()), WeightedPart(constant(1))]
    broken = trajectory(None, stop=stop, error="disk on fire")
    fine, bad = await score(group(trajectory("blue"), broken), *parts)
    assert fine.reward is not None
    assert (bad.reward, bad.correct) == (None, None)
    assert all(not s.valid and "disk on fire" in s.reason for s in bad.scores.values())
    [alone] = await score(group(broken))
    assert alone.reward is None


async def test_what_the_environment_paid_is_a_part(trajectory, group):
    paid, unpaid = await score(
        group(trajectory("x", env_reward=0.25), trajectory("x")), WeightedPart(constant(1), weight=2)
    )
    assert (paid.reward, unpaid.reward) == (2.25, 2.0)
    assert (paid.scores["env"], unpaid.scores["env"]) == (Score(0.25), Score(0.0)), "a mean over both is a mean"
    [never] = await score(group(trajectory("x")), WeightedPart(constant(1)))
    assert "env" not in never.scores
    [bad] = await score(group(trajectory("x", env_reward=float("nan"))), WeightedPart(constant(1)))
    assert bad.reward is None


async def test_equal_answers_are_graded_once(trajectory, group):
    graded = []

    class Counting:
        judges_correctness = True

        def grading_key(self, trajectory):
            return (trajectory.answer,)

        async def __call__(self, trajectory):
            graded.append(trajectory.answer)
            return Score(float(trajectory.answer == "blue"))

    rollouts = group(*map(trajectory, ["blue", "red", "blue", None, "red", "blue", None]))
    scored = await score(rollouts, WeightedPart(Counting()))
    assert sorted(graded, key=str) == [None, "blue", "red"]
    assert [t.correct for t in scored] == [True, False, True, False, False, True, False]


async def test_accuracy_shares_grades_of_equal_answers_only(trajectory):
    key = Accuracy().grading_key
    assert key(trajectory("blue")) == key(trajectory("blue", looked=True))
    assert key(trajectory("blue")) != key(trajectory("Blue"))
    assert key(trajectory("blue")) != key(trajectory("blue", truth="red"))
    assert key(trajectory("blue")) != key(trajectory("blue", question="(A) blue (B) red"))


@pytest.mark.parametrize("key", [lambda t: [], lambda t: 1 / 0, lambda t: None])
async def test_a_key_that_fails_only_costs_its_saving(trajectory, group, key):
    graded = []

    class Keyed:
        grading_key = staticmethod(key)

        async def __call__(self, trajectory):
            graded.append(1)
            return Score(1.0)

    scored = await score(group(trajectory("x"), trajectory("x")), WeightedPart(Keyed()))
    assert [t.reward for t in scored] == [1.0, 1.0]
    assert len(graded) == 2


async def test_trajectories_are_scored_side_by_side(trajectory, group):
    arrived = 0
    together = asyncio.Event()

    @reward
    async def meet(trajectory):
        nonlocal arrived
        arrived += 1
        if arrived == 8:
            together.set()
        await together.wait()
        return 1

    scored = await score(group(*[trajectory("x")] * 8), WeightedPart(meet, timeout_s=10))
    assert [t.reward for t in scored] == [1.0] * 8


# --- what parts count, and their end ---------------------------------------------------------------------------------


class Counted:
    """A reward with every hook; `fail` names those that raise."""

    def __init__(self, name, *fail, summarises=True):
        self.name, self.fail, self.closed, self.calls = name, fail, 0, 0
        if summarises:
            self.summary = lambda counts: self.do("summary", counts | {"share": counts["right"] / counts["calls"]})

    def do(self, hook, value):
        if hook in self.fail:
            raise RuntimeError(f"no {hook}")
        return value

    async def __call__(self, trajectory):
        self.calls += 1
        return Score(1.0)

    def metrics(self):
        counts = {"calls": self.calls, "right": self.calls - 1}
        self.calls = 0
        return self.do("metrics", counts)

    async def close(self):
        self.closed += self.do("close", 1)


async def test_counts_of_processes_add_up_before_shares_are_derived(trajectory, group):
    ranks = [Rewards([WeightedPart(Counted("a")), WeightedPart(Format())]) for _ in range(2)]
    await ranks[0].score(group(trajectory("x")))
    await ranks[1].score(group(*map(trajectory, "xyz")))
    counted = [rewards.metrics() for rewards in ranks]
    assert ranks[0].summary(counted) == {"a": {"calls": 4, "right": 2, "share": 0.5}}, "not the mean of 0 and 2/3"
    assert ranks[0].metrics()["a"]["calls"] == 0, "since the last call"
    plain = Rewards([WeightedPart(Counted("a", summarises=False))])
    assert plain.summary(counted) == {"a": {"calls": 4, "right": 2}}


async def test_a_hook_that_fails_costs_its_numbers_alone(trajectory, group, caplog):
    broken, fine = Counted("broken", "metrics", "close"), Counted("fine", "summary")
    rewards = Rewards([WeightedPart(broken), WeightedPart(fine), WeightedPart(Format())])
    await rewards.score(group(trajectory("x")))
    assert rewards.summary([rewards.metrics()]) == {"fine": {"calls": 1, "right": 0}}
    await rewards.close()
    assert (broken.closed, fine.closed) == (0, 1)
    assert all(f"no {hook}" in caplog.text for hook in ("metrics", "summary", "close"))


# --- construction ---------------------------------------------------------------------------------------------------


def test_names_may_not_clash():
    with pytest.raises(RecipeError, match="'format' stands there 2 times"):
        Rewards([WeightedPart(Format()), WeightedPart(Format())])
    with pytest.raises(RecipeError, match="'env' is kept"):
        Rewards([WeightedPart(Format(), name="env")])


def test_correctness_has_one_judge():
    other = constant(1, "judge", judges_correctness=True)
    with pytest.raises(RecipeError, match="'accuracy' and 'judge' both judge correctness"):
        Rewards([WeightedPart(Accuracy()), WeightedPart(other)])
    rewards = Rewards([WeightedPart(Accuracy(), weight=0), WeightedPart(other)])
    assert rewards.judge is not None and rewards.judge.name == "judge"
    measured = Rewards([WeightedPart(Accuracy(), weight=0)])
    assert measured.judge is not None and measured.judge.name == "accuracy"
    assert Rewards([WeightedPart(Format())]).judge is None


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_the_ratio_penalty_asks_for_a_judge(rule):
    with pytest.raises(RecipeError, match="'ratio_penalty' needs a reward that judges correctness"):
        Rewards([WeightedPart(RatioPenalty(rule=rule))])
    Rewards([WeightedPart(RatioPenalty(rule="all"))])


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_finite(weight):
    with pytest.raises(ValueError, match="weight"):
        WeightedPart(Format(), weight=weight)
