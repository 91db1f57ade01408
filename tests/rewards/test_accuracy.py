"""The cascade of rules: which answers are right, and when that cannot be told."""

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.rewards import Accuracy
from agentvision.rewards.accuracy import RULES, accepted_answers, options_in
from agentvision.rewards.maths import MathsError
from agentvision.types import Sample

CHOICES = "What is it? (A) a bus (B) a dog (C) 3 cats"


async def grade(trajectory, answer, truth, **others):
    settings = {k: others.pop(k) for k in ("rule", "tolerance", "min_similarity") if k in others}
    return (await Accuracy(**settings)(trajectory(answer, truth=truth, **others))).value


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("Blue.", "blue", 1),
        ("red", "blue", 0),
        (r"\boxed{blue}", "blue", 1),
        ("3,000 m", "3 km", 1),
        ("12", "12%", 1),
        ("13", "12%", 0),
        ("(B)", "B", 1),
        (r"\boxed{A}", "A", 1),
        (r"\boxed{(A)}", "A", 1),
        ("B", "A", 0),
        ("blues", "blue", 0),
        (None, "blue", 0),
        ("", "blue", 0),
        (" ", "blue", 0),
        (r"\boxed{}", "blue", 0),
        (r"\boxed{\boxed{}}", "blue", 0),
        (":", "blue", 0),
    ],
)
async def test_auto(trajectory, answer, truth, value):
    assert await grade(trajectory, answer, truth) == value


@pytest.mark.parametrize(
    ("answer", "truth", "value"),
    [
        ("B", "B", 1),
        ("dog", "B", 1),
        ("a dog", "(B)", 1),
        ("B", "a dog", 1),
        ("A", "B", 0),
        ("A dog", "B", 1),
        ("3 cats", "C", 1),
    ],
)
async def test_auto_knows_the_options_of_the_question(trajectory, answer, truth, value):
    assert await grade(trajectory, answer, truth, question=CHOICES) == value


@pytest.mark.parametrize("options", [["a bus", "a dog"], {"a": "a bus", "B": "a dog"}])
async def test_options_of_the_meta(trajectory, options):
    assert await grade(trajectory, "dog", "B", meta={"options": options}) == 1


async def test_one_of_several_accepted_answers_is_enough(trajectory):
    assert await grade(trajectory, "azure", "blue", meta={"answers": ["navy", "azure"]}) == 1
    assert await grade(trajectory, "red", "blue", meta={"answers": ["navy", "azure"]}) == 0


@pytest.mark.parametrize(
    ("rule", "answer", "truth", "value"),
    [
        ("exact", "3000 m", "3 km", 0),
        ("number", "3000 m", "3 km", 1),
        ("anls", "invoise", "invoice", 1),
        ("anls", "inxxxxx", "invoice", 0),
        ("anls", "invoise 12", "invoice 12", 1),
        ("anls", "invoice 13", "invoice 12", 0),
        ("anls", "1986", "1985", 0),
        ("auto", "invoise", "invoice", 0),
        (("exact", "anls"), "invoise", "invoice", 1),
        (("exact", "number"), "3000 m", "3 km", 1),
        ("choice", "A. x", "A", 1),
    ],
)
async def test_named_rules(trajectory, rule, answer, truth, value):
    assert await grade(trajectory, answer, truth, rule=rule) == value


async def test_maths_is_asked_for_formulas(trajectory):
    accuracy = Accuracy()
    assert (await accuracy(trajectory(r"\boxed{1 + 2x + x^2}", truth="$(x+1)^2$"))).value == 1
    assert (await accuracy(trajectory("x^2", truth="$(x+1)^2$"))).value == 0


async def test_maths_without_a_verdict_is_invalid(trajectory, monkeypatch):
    async def fail(*_):
        raise MathsError("maths: deadline")

    monkeypatch.setattr("agentvision.rewards.maths.MathsPool.equal", fail)
    score = await Accuracy()(trajectory("x^3", truth="$(x+1)^2$"))
    assert not score.valid
    assert "deadline" in score.reason
    assert (await Accuracy()(trajectory("$(x+1)^2$", truth="$(x+1)^2$"))).value == 1


async def test_words_never_reach_the_maths_workers(trajectory, monkeypatch):
    async def fail(*_):
        raise AssertionError("asked")

    monkeypatch.setattr("agentvision.rewards.maths.MathsPool.equal", fail)
    for truth in ("blue", "t-shirt", "42", "3 km", "B", "12-05-2020"):
        assert (await Accuracy()(trajectory("red", truth=truth))).value == 0


@pytest.mark.parametrize("truth", [None, "", "  "])
async def test_no_ground_truth_is_invalid(trajectory, truth):
    score = await Accuracy()(trajectory("blue", truth=truth))
    assert not score.valid
    assert "'s1' has no ground truth" in score.reason


@pytest.mark.parametrize("rule", ["number", "choice"])
async def test_a_truth_that_the_rule_cannot_read_is_invalid(trajectory, rule):
    score = await Accuracy(rule=rule)(trajectory("red", truth="blue"))
    assert not score.valid
    assert "'blue' cannot be graded by rule" in score.reason
    assert (await Accuracy(rule=rule)(trajectory("blue", truth="blue"))).value == 1


async def test_tolerance_and_similarity(trajectory):
    assert await grade(trajectory, "104", "100", tolerance=0.05) == 1
    assert await grade(trajectory, "106", "100", tolerance=0.05) == 0
    assert await grade(trajectory, "invoise", "invoice", rule="anls", min_similarity=0.9) == 0


rules = st.sampled_from([rule for rule in RULES if rule != "maths"])
strings = st.text(st.characters(codec=None), max_size=40)


@hypothesis.settings(deadline=None)
@given(strings, strings, strings, rules)
async def test_grading_is_total(trajectory, answer, truth, question, rule):
    if rule == "auto":
        truth = truth.replace("\\", "").replace("^", "").replace("=", "")  # formulas are the maths workers' own tests
    score = await Accuracy(rule=rule)(trajectory(answer, truth=truth, question=question))
    assert score.value in (0.0, 1.0) or (score.value is None and score.reason)


@pytest.mark.parametrize("meta", [{}, {"answers": "blue"}, {"answers": None}, {"answers": [None, 3, "", "blue"]}])
def test_rubbish_among_accepted_answers_is_passed_over(meta):
    assert accepted_answers(Sample("s", "q", answer="blue", meta=meta)) == ("blue",)


def test_options_default_to_the_question():
    assert options_in(Sample("s", "(A) x (B) y")) == {"A": "x", "B": "y"}
    assert options_in(Sample("s", "(A) x (B) y", meta={"options": ["u", "v"]})) == {"A": "u", "B": "v"}
    assert options_in(Sample("s", "q", meta={"options": 3})) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "exakt"},
        {"rule": ()},
        {"tolerance": -1},
        {"tolerance": 1},
        {"min_similarity": 0},
        {"maths_timeout_s": 0},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings)).removeprefix("maths_")):
        Accuracy(**settings)


@pytest.mark.parametrize(("grading", "right"), [("exact", 0.0), (None, 1.0), ("nonsense", 1.0)])
async def test_a_data_set_may_name_the_rule_that_auto_stands_for(trajectory, grading, right):
    meta = {} if grading is None else {"grading": grading}
    assert await grade(trajectory, "700", "7E2", meta=meta) == right
