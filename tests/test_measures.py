"""Training and evaluation measure the same thing, and what broke is not held against or for the model."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.evaluate.metrics import summarize
from agentvision.images import ImageStore
from agentvision.measures import trajectory_metrics
from agentvision.train.advantages import group_advantages
from agentvision.train.collect import ScoredGroup
from agentvision.train.metrics import rollout_metrics
from agentvision.types import Group, Score, StopReason, Trajectory

from .scripted import trajectory

STORE = ImageStore()
BROKEN = (StopReason.POLICY_ERROR, StopReason.ENV_ERROR)

episodes = st.builds(
    lambda called, correct, hard, stop: trajectory(STORE, called=called, correct=correct, hard=hard, stop=stop),
    st.booleans(),
    st.sampled_from([True, False, None]),
    st.sampled_from([True, False, None]),
    st.sampled_from([StopReason.ANSWERED, StopReason.LENGTH, *BROKEN]),
)


def trained(trajectories: list[Trajectory]) -> dict:
    groups = [Group(t.sample, (t,)) for t in trajectories]
    return rollout_metrics([ScoredGroup(group, group_advantages(group.rewards_G)) for group in groups])


@settings(max_examples=25, deadline=None)  # each draws ten thousand resamples a measure
@given(st.lists(episodes, min_size=1, max_size=12))
def test_training_and_evaluation_say_the_same_of_the_same_episodes(trajectories: list[Trajectory]) -> None:
    step, result = trained(trajectories), summarize(trajectories)
    for name in trajectory_metrics(trajectories):
        assert step[name] == pytest.approx(result[name]), name
    assert step["broken_share"] == pytest.approx(result["broken"] / result["n"])


@settings(max_examples=25, deadline=None)
@given(st.lists(episodes, max_size=8), st.sampled_from(BROKEN), st.integers(1, 3))
def test_broken_episodes_change_no_measure_and_are_counted(
    trajectories: list[Trajectory], stop: StopReason, count: int
) -> None:
    failed = replace(trajectory(STORE, stop=stop, correct=None), turns=(), views=(), scores={}, full_tokens=0)
    whole = [t for t in trajectories if t.stop not in BROKEN]
    assert trajectory_metrics([*trajectories, *[failed] * count]) == trajectory_metrics(whole)
    assert summarize([*whole, *[failed] * count])["broken"] == count


def test_the_format_is_the_rewards_verdict_or_read_off_the_grammar() -> None:
    plain = trajectory(STORE)
    unscored = replace(plain, scores={})
    cases = [
        (plain, [True]),
        (replace(plain, scores={"format": Score(0.0)}), [False]),
        (replace(plain, scores={"format": Score.invalid("away")}), []),
        (unscored, [True]),
        (replace(unscored, stop=StopReason.LENGTH), [False]),
    ]
    for case, expected in cases:
        assert trajectory_metrics([case])["format"] == expected
