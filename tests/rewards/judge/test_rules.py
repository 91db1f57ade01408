"""Rules speak only where there is no doubt; the cases in doubt are the point of the table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.rewards.judge.case import Case
from agentvision.rewards.judge.rules import Rules, definitely
from agentvision.rewards.maths import MathsError

COLOURS = "Which colour? (A) blue (B) red (C) dark red"


def case(answer, truth, question="What is it?", **others):
    return Case.of(question=question, truth=truth, answer=answer, **others)


@pytest.fixture(scope="module")
def rules():
    made = Rules()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        # the same text
        ("The Eiffel Tower.", "eiffel tower", 1),
        (r"\boxed{42}", "42", 1),
        ("Eiffel", "Eiffel Tower", None),
        ("a feline", "cat", None),
        ("cat", "dog", None),  # words that differ may be a paraphrase: never 0
        # numbers
        ("3 km", "3000 m", 1),
        ("1,234.5", "1234.5", 1),
        ("41", "42", None),  # within 5 %: perhaps rounded
        ("3.14", "3.14159", None),
        ("40", "42.9", 0),
        ("7", "3", 0),
        ("5.2 million", "5.2", None),  # "in millions"
        ("52", "5.2", None),
        ("5 km", "5", None),
        ("5 km", "7", None),  # 7 may be in another unit
        ("5 km", "7 km", 0),
        ("37 °C", "98.6 °F", None),
        ("5 apples", "5 fruits", None),
        ("-5", "5", None),
        ("0", "3", None),
        ("0.12", "12%", None),
        ("5 mW", "5 MW", None),  # one text after folding case, and not one number
        ("about 50", "50", 1),
        # what may be no number
        ("3/4", "4/3", None),
        ("1,2", "2,1", None),
        ("7E2", "700", None),
        ("7E2", "7e2", 1),
        ("7", "007", None),
        ("3", "3.000", None),
        ("90s", "1990s", None),
        ("'85", "1985", None),
        # letters
        ("B", "c", 0),
        ("(b)", "B", 1),
        ("是", "对", None),  # two words for yes
        # formulas
        ("(x+1)^2", "x^2+2x+1", 1),
        ("(x+1)^2", "x^2+2x+2", None),
    ],
)
async def test_the_verdict_of_an_open_question(rules, answer, truth, score):
    verdict = await rules(case(answer, truth))
    assert (verdict and verdict.score) == score
    assert verdict is None or (verdict.by == "rules" and verdict.reason)


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("A", "A", 1),
        ("blue", "A", 1),
        ("(B) red", "B", 1),
        ("B", "A", 0),
        ("red", "blue", 0),
        ("crimson", "B", None),
        ("A or B", "A", None),
        ("A. red", "A", None),  # a letter and another option's text
        ("B", "green", None),  # the truth is none of the options
    ],
)
async def test_the_verdict_of_a_choice(rules, answer, truth, score):
    verdict = await rules(case(answer, truth, COLOURS))
    assert (verdict and verdict.score) == score


async def test_any_accepted_answer_will_do_and_one_in_doubt_is_enough_for_no_zero(rules):
    assert (await rules(case("9", "7", accepted=("9",)))).score == 1
    assert (await rules(case("9", "7", accepted=("5",)))).score == 0
    assert await rules(case("9", "7", accepted=("a handful",))) is None


@pytest.mark.parametrize(
    ("answer", "grading", "score"),
    [("7E2", "exact", 1), ("700", "exact", 0), ("700", "number", 1), ("7F2", "anls", 1), ("7E3", "anls", 0)],
)
async def test_a_rule_that_the_data_set_names_decides_both_ways(rules, answer, grading, score):
    assert (await rules(case(answer, "7E2", grading=grading))).score == score


async def test_a_named_rule_that_does_not_apply_leaves_it_to_the_judge(rules):
    assert await rules(case("9", "a tabby", grading="number")) is None


async def test_formulas_that_cannot_be_compared_are_for_the_judge(monkeypatch):
    rules = Rules()

    async def late(*_):
        raise MathsError("deadline")

    monkeypatch.setattr(rules._pool, "equal", late)
    assert await rules(case("x+1", "1+x")) is None
    assert await rules(case("x+1", "1+x", grading="maths")) is None


words = st.text(st.sampled_from("abeé 0123456789.,-/%()ABC$kmK½²\u200b"), max_size=12)


@given(words, words, st.sampled_from([{}, {"A": "blue", "B": "12 km"}]))
def test_it_is_symmetric_and_never_calls_equal_texts_different(answer, truth, options):
    found = definitely(answer, truth, options)
    assert found in (True, False, None)
    assert definitely(truth, answer, options) == found or options
    assert definitely(answer, answer, options) is not False
