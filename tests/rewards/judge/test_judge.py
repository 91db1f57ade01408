"""The judge asks as little as possible, once, and never guesses."""

import asyncio

import pytest

from agentvision.chat import Reply
from agentvision.errors import RecipeError
from agentvision.rewards.judge.cache import VerdictCache
from agentvision.rewards.judge.judge import Judge, cache_path
from agentvision.rewards.judge.rules import Rules

CASE = {"question": "What is on the sign?", "truth": "a stop sign", "answer": "it says stop"}


@pytest.mark.parametrize(("said", "score"), [("Score: 1", 1.0), ("Score: 0", 0.0), ('{"reason": "", "score": 1}', 1.0)])
async def test_a_reply_is_a_verdict(judge_of, model, said, score):
    verdict = await judge_of(model(said))(**CASE)
    assert (verdict.score, verdict.by) == (score, "large")


async def test_a_graded_template_gives_scores_between(judge_of, model):
    assert (await judge_of(model("Score: 0.7"), graded=True)(**CASE)).score == 0.7
    assert (await judge_of(model("Score: 0.7"))(**CASE)).score is None


@pytest.mark.parametrize("answer", [None, "", " ... ", "Solution:", "Let's think step by step"])
async def test_an_answer_that_says_nothing_is_wrong_without_asking(judge_of, model, answer):
    large = model()
    judge = judge_of(large)
    verdict = await judge(**(CASE | {"answer": answer}))
    assert (verdict.score, verdict.by, large.prompts) == (0.0, "prefilter", [])
    assert judge.summary(judge.metrics())["share_prefilter"] == 1.0


async def test_without_a_truth_there_is_no_verdict(judge_of, model):
    large = model()
    verdict = await judge_of(large)(**(CASE | {"truth": "  "}))
    assert verdict.score is None and "no ground truth" in verdict.reason and not large.prompts


async def test_a_reply_that_was_cut_off_has_no_verdict(judge_of, model):
    """Of "Score: 0.8", "Score: 0" may be all that came."""
    cut = model(lambda prompt, n: Reply("Score: 0", finish="length"))
    verdict = await judge_of(cut, graded=True)(question="q", truth="a cat", answer="a dog")
    assert verdict.score is None and verdict.reason.startswith("unparsable") and "max_tokens" in verdict.reason


async def test_a_truth_that_cannot_be_seen_is_none(judge_of, model):
    asked = model()
    assert (await judge_of(asked)(question="q", truth="\u200b", answer="a dog")).score is None
    assert not asked.prompts


async def test_a_reply_without_a_verdict_is_asked_for_once_more(judge_of, model):
    mends = model(lambda prompt, n: ["I would say it is right.", "Score: 1"][n])
    assert (await judge_of(mends)(**CASE)).score == 1.0
    first, second = mends.prompts
    assert first != second, "with a fresh delimiter"
    stubborn = model("Score: 10")
    verdict = await judge_of(stubborn)(**CASE)
    assert verdict.score is None and verdict.reason.startswith("unparsable") and len(stubborn.prompts) == 2
    once = model("Score: 10")
    assert (await judge_of(once, reasks=0)(**CASE)).score is None and len(once.prompts) == 1


async def test_no_reply_is_no_verdict_and_is_not_remembered(judge_of, model, down):
    large = model(lambda prompt, n: down if n == 0 else "Score: 1")
    judge = judge_of(large)
    verdict = await judge(**CASE)
    assert verdict.score is None and verdict.reason.startswith("server_error: ")
    assert (await judge(**CASE)).score == 1.0
    metrics = judge.summary(judge.metrics())
    assert metrics["invalid/server_error"] == 1 and metrics["share_invalid"] == 0.5


async def test_the_same_answer_is_asked_about_once(judge_of, model):
    large = model(lambda prompt, n: f"Score: {n}")
    judge = judge_of(large)
    together = await asyncio.gather(*(judge(**CASE) for _ in range(5)))
    boxed = await judge(**(CASE | {"answer": r"\boxed{it says stop}", "question": f"<image>\n{CASE['question']}"}))
    assert [verdict.score for verdict in [*together, boxed]] == [0.0] * 6
    assert len(large.prompts) == 1
    metrics = judge.summary(judge.metrics())
    assert (metrics["judged"], metrics["joined"], metrics["cache_hit_rate"], metrics["calls"]) == (6, 4, 0.5, 1)
    assert not any(judge.metrics().values()), "since the last call"


@pytest.mark.parametrize(
    "change", [{"question": "Which?"}, {"truth": "stop"}, {"answer": "it says go"}, {"accepted": ["x"]}]
)
async def test_another_question_truth_or_answer_is_asked_about(judge_of, model, change):
    large = model()
    judge = judge_of(large)
    await asyncio.gather(judge(**CASE), judge(**(CASE | change)))
    assert len(large.prompts) == 2


async def test_whoever_is_cancelled_the_others_get_their_verdict(judge_of, model):
    release = asyncio.Event()
    large = model()

    async def ask(messages, *, schema=None):
        large.prompts.append("")
        await release.wait()
        return await type(large).ask(large, messages)

    large.ask, judge = ask, judge_of(large)
    tasks = [asyncio.create_task(judge(**CASE)) for _ in range(3)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    await asyncio.sleep(0)
    release.set()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError) and [v.score for v in others] == [1.0, 1.0]


def test_a_second_run_pays_nothing(judge_of, model, tmp_path):
    async def run(large):
        judge = judge_of(large, cache=VerdictCache(tmp_path / "v.sqlite"))
        verdict = await judge(**CASE)
        await judge.close()
        return verdict

    first, second = model("Score: 1"), model("Score: 0")
    assert asyncio.run(run(first)).score == asyncio.run(run(second)).score == 1.0
    assert (len(first.prompts), len(second.prompts), second.closed) == (1, 0, 0), "its model was not even set up"


async def test_accepted_answers_reach_the_judge_and_the_trivial_is_settled_without(judge_of, model):
    large = model()
    judge = judge_of(large, rules=Rules())
    assert (await judge(question="How many?", truth="7", answer="seven")).by == "rules"
    assert (await judge(question="Which mark?", truth=":", answer=":")).by == "rules", "no empty answer, but the truth"
    assert not large.prompts
    await judge(**CASE, accepted=["halt"])
    assert "halt" in large.prompts[0]
    await judge.close()


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "model: is required"),
        ({"model": "openai/m", "modle": 1}, r"modle: no such setting \(value 1\)\. Did you mean 'model'"),
        (
            {"model": "openai/m", "small": {"model": "x", "sample": 1}},
            r"small\.sample: no such .* Did you mean 'samples'",
        ),
        ({"model": "openai/m", "audit_share": 3}, r"audit_share: .*less than or equal to 1 \(value 3\)"),
        ({"model": "openai/m", "concurrency": "60"}, r"concurrency: .*valid integer"),
        (
            {"model": "openai/m", "template": "binry"},
            r"template: 'binry' cannot be read.*'binary'|template: template 'binry'",
        ),
        ({"model": "openai/m", "prices": [1]}, r"prices"),
    ],
)
def test_wrong_settings_are_named(settings, line):
    with pytest.raises(RecipeError, match=line):
        Judge.from_config({"cache": None} | settings)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(RecipeError) as raised:
        Judge.from_config(model="", temperature=-1, small={})
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == [
        "model",
        "temperature",
        "small.model",
    ]


def test_the_users_cache_is_one_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("platform.node", lambda: "node7")
    assert cache_path("user") == tmp_path / "agentvision" / "verdicts-node7.sqlite"
    assert cache_path(None) is None and cache_path(str(tmp_path / "v")) == tmp_path / "v"
    Judge.from_config(model="openai/m")
    assert not list(tmp_path.iterdir()), "reading a recipe writes nothing"
