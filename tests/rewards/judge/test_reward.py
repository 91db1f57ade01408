"""The judge as a reward, against a real server that knows every truth and fails three times in ten."""

import asyncio
import random
import threading
import time

import pytest

from agentvision.errors import RecipeError
from agentvision.plugins import load
from agentvision.rewards import Accuracy, Format, RatioPenalty, Rewards, WeightedPart
from agentvision.rewards.judge import JudgeReward
from agentvision.train.advantages import group_advantages
from agentvision.types import Group, Sample
from tests.judging import asked, same_text
from tests.openai_server import OpenAIServer, seeded_faults

QUICK = {"cache": None, "rules": False, "call_timeout_s": 30.0, "audit_share": 0.0}


def reward(server, **settings):
    return JudgeReward(model="openai/m", api_base=server.url, **(QUICK | settings))


def test_it_is_the_plug_in_judge_and_its_settings_are_checked_where_they_stand():
    assert load("rewards", "judge") is JudgeReward
    with pytest.raises(RecipeError) as raised:
        Rewards.from_config(
            [{"judge": {"model": "openai/m", "small": {"modle": "x"}, "max_tokens": 0}}, {"format": {}}]
        )
    assert [line.partition(": ")[0] for line in str(raised.value).splitlines()] == [
        "rewards.0.judge.max_tokens",
        "rewards.0.judge.small.model",
        "rewards.0.judge.small.modle",
    ]
    with pytest.raises(RecipeError, match=r"rewards\.0\.judge\.modle: .* Did you mean 'model'"):
        Rewards.from_config([{"judge": {"modle": "openai/m"}}])
    made = Rewards.from_config(
        [{"judge": {"model": "openai/m", "weight": 2.0, "timeout_s": 60}}, {"ratio_penalty": {}}]
    )
    assert made.judge is made.parts[0] and (made.judge.weight, made.judge.timeout_s) == (2.0, 60)


async def test_a_sample_without_a_truth_has_no_score(trajectory):
    score = await JudgeReward(model="openai/m", cache=None)(trajectory("blue", truth=None))
    assert not score.valid and "no ground truth" in score.reason


def test_a_missing_key_is_found_before_a_run(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rewards = Rewards([WeightedPart(JudgeReward(model="openai/gpt-4o", cache=None))])
    with pytest.raises(Exception, match="OPENAI_API_KEY"):
        rewards.check()


async def test_the_judge_reads_the_question_its_options_and_the_answer_and_nothing_else(trajectory):
    with OpenAIServer(answer=same_text) as server:
        judged = reward(server)
        score = await judged(
            trajectory(
                r"\boxed{b}",
                question="<image>\nWhich one?",
                truth="B",
                meta={"options": ["a cat", "a dog"], "answers": ["a hound"]},
            )
        )
        assert score.value == 1.0 and score.reason == "large"
        (request,) = server.requests
    text = str(request.body["messages"])
    assert asked(request) == ("B", "b")
    assert all(part in text for part in ("Which one?", "(A) a cat", "(B) a dog", "a hound"))
    assert not any(part in text for part in ("<image>", "boxed", "image_url", "tool_call", "<think>"))


async def test_nothing_is_invented_while_the_server_fails_three_times_in_ten(trajectory):
    """Valid scores are what the server meant; siblings of an invalid one fare as if it had never been rolled out."""
    rng = random.Random(5)
    groups = []
    for g in range(10):
        sample = Sample(f"s{g}", f"Question {g}?", answer="blue")
        answers = [rng.choice(["blue", f"red {g}.{r}", f"shade of blue {g}.{r}", ""]) for r in range(8)]
        groups.append(
            Group(
                sample, tuple(trajectory(a, question=sample.question, looked=r % 2 == 0) for r, a in enumerate(answers))
            )
        )
    with OpenAIServer(answer=same_text, fault=seeded_faults(0.3, seed=3), retry_after="0.1") as server:
        judged = reward(server, attempts=1, concurrency=8, call_timeout_s=2.0)
        rewards = Rewards([WeightedPart(judged), WeightedPart(Format(), weight=0.5), WeightedPart(RatioPenalty())])
        scored = await asyncio.gather(*map(rewards.score, groups))
    counts = rewards.summary([rewards.metrics()])["judge"]
    seen = [t for group in scored for t in group.trajectories]
    invalid = [t for t in seen if t.correct is None]
    assert 5 <= counts["invalid"] <= len(invalid) < len(seen) / 2, "equal answers of a group share what they got"
    assert all(t.scores["judge"].value is None and t.scores["judge"].reason and t.reward is None for t in invalid)
    for t in seen:
        if t.correct is not None:
            assert t.scores["judge"].value == float(t.answer == "blue")
    oracle = Rewards([WeightedPart(Accuracy(rule="exact")), *rewards.parts[1:]])
    for group in scored:
        valid = tuple(t for t in group.trajectories if t.correct is not None)
        without = await oracle.score(Group(group.sample, valid))
        found = group_advantages(group.rewards_G)
        kept = [a for a, ok in zip(found.advantages_G, found.valid_G, strict=True) if ok]
        assert found.kept == (len(valid) > 1)
        if found.kept:
            assert kept == pytest.approx(group_advantages(without.rewards_G).advantages_G, abs=1e-7)


def test_one_reward_serves_several_event_loops_at_once(trajectory):
    with OpenAIServer(answer=same_text, latency_s=0.02) as server:
        judged, results = reward(server), []

        async def score(n):
            return [(await judged(trajectory(a, truth=f"{n}"))).value for a in (str(n), "no", str(n))]

        threads = [threading.Thread(target=lambda n=n: results.append(asyncio.run(score(n)))) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert results == [[1.0, 0.0, 1.0]] * 6


async def test_a_dead_server_is_given_up_on_within_its_patience(trajectory):
    with OpenAIServer() as server:
        gone = server.url
    judged = JudgeReward(model="openai/m", api_base=gone, patience_s=1.0, **QUICK)
    began = time.monotonic()
    first = await judged(trajectory("blue"))
    assert not first.valid and "connection" in first.reason
    assert time.monotonic() - began < 20
