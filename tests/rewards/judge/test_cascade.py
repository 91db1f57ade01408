"""Who is asked, whose word counts, and what the audit sees."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.rewards.judge.cascade import is_audited, settled
from agentvision.rewards.judge.case import Case
from agentvision.rewards.judge.rules import Rules
from agentvision.rewards.judge.verdict import Verdict


def case(n):
    return {"question": "What is it?", "truth": f"a thing called {n}", "answer": f"perhaps thing {n}"}


def by_turns(*said):
    return lambda prompt, n: said[n % len(said)]


async def test_the_small_judge_decides_when_its_samples_agree(judge_of, model):
    small, large = model("Score: 0"), model("Score: 1")
    verdict = await judge_of(large, small)(**case(1))
    assert (verdict.score, verdict.by, len(small.prompts), large.prompts) == (0.0, "small", 2, [])


@pytest.mark.parametrize("said", [("Score: 0", "Score: 1"), ("Score: 1", "hm", "hm"), ("hm",)])
async def test_the_large_judge_decides_when_the_small_one_is_unsure(judge_of, model, said):
    judge = judge_of(model("Score: 1"), model(by_turns(*said)))
    assert (await judge(**case(1))).by == "large"
    metrics = judge.summary(judge.metrics())
    assert (metrics["share_large"], metrics["share_small"], metrics["calls_large"]) == (1.0, 0.0, 1)


async def test_the_large_judge_decides_when_the_small_one_is_away(judge_of, model, down):
    assert (await judge_of(model("Score: 1"), model(down))(**case(1))).by == "large"
    both = await judge_of(model(down), model(down))(**case(1))
    assert both.score is None and both.by == "large"


async def test_a_graded_middle_is_for_the_large_judge(judge_of, model):
    assert (await judge_of(model("Score: 0.6"), model("Score: 0.5"), graded=True)(**case(1))).score == 0.6
    sure = await judge_of(model("Score: 0"), model(by_turns("Score: 0.8", "Score: 1.0")), graded=True)(**case(1))
    assert (sure.score, sure.by) == (pytest.approx(0.9), "small")


async def test_what_is_decided_twice_is_asked_once_even_where_the_small_judge_was_unsure(judge_of, model):
    small, large = model(by_turns("Score: 0", "Score: 1")), model("Score: 1")
    judge = judge_of(large, small)
    for _ in range(3):
        assert (await judge(**case(1))).by == "large"
    assert (len(small.prompts), len(large.prompts)) == (2, 1)


@given(st.lists(st.none() | st.floats(0, 1), max_size=4))
def test_samples_settle_it_only_at_one_end(scores):
    found = settled([Verdict(score, by="small") for score in scores])
    sure = bool(scores) and None not in scores and (max(scores) <= 0.25 or min(scores) >= 0.75)
    assert (found is not None) == sure
    if found is not None:
        assert min(scores) - 1e-9 <= found.score <= max(scores) + 1e-9 and found.by == "small"


# --- the audit ------------------------------------------------------------------------------------------------------


async def test_the_audit_measures_and_changes_no_verdict(judge_of, model):
    rules = Rules()
    large = model("Score: 0")
    judge = judge_of(large, model("Score: 1"), rules=rules, audit_share=1.0)
    assert (await judge(question="How many?", truth="7", answer="7")).score == 1.0
    assert (await judge(**case(1))).score == 1.0
    assert (await judge(**(case(1) | {"answer": ""}))).score == 0.0
    assert len(large.prompts) == 2, "what says nothing is not shown to a judge, not even to check"
    large.say = lambda prompt, n: "Score: 1"
    await judge(**case(2))
    metrics = judge.summary(judge.metrics())
    assert (metrics["agreement"], metrics["agreement_rules"], metrics["agreement_small"]) == (
        pytest.approx(1 / 3),
        0,
        0.5,
    )
    rules.close()


async def test_an_audit_that_fails_costs_nothing_but_itself(judge_of, model, down):
    judge = judge_of(model(down), model("Score: 1"), audit_share=1.0)
    assert (await judge(**case(1))).score == 1.0
    metrics = judge.summary(judge.metrics())
    assert metrics["audit_invalid"] == 1 and "agreement" not in metrics and metrics["share_invalid"] == 0


async def test_what_the_large_judge_decides_needs_no_audit(judge_of, model):
    large = model("Score: 1")
    judge = judge_of(large, audit_share=1.0)
    await judge(**case(1))
    assert len(large.prompts) == 1 and "audited" not in judge.metrics()


def test_the_audited_share_is_the_same_everywhere():
    cases = [Case.of(**case(n)) for n in range(4000)]
    picked = [is_audited(c, 0.05) for c in cases]
    assert 140 < sum(picked) < 260
    assert picked == [is_audited(Case.of(**case(n)), 0.05) for n in range(4000)]
    assert all(is_audited(c, 0.1) for c, p in zip(cases, picked, strict=True) if p), "a larger share holds the smaller"
    assert not any(is_audited(c, 0.0) for c in cases) and all(is_audited(c, 1.0) for c in cases)


async def test_cases_run_beside_one_another(judge_of, model):
    waiting = model(lambda prompt, n: None)
    judge = judge_of(waiting)
    tasks = [asyncio.create_task(judge(**case(n))) for n in range(20)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(waiting.prompts) == 20
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
