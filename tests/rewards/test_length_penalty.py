"""DAPO's soft overlong punishment, on the longest turn."""

from dataclasses import replace
from fractions import Fraction

import pytest

from agentvision.errors import RecipeError
from agentvision.rewards import LengthPenalty, Rewards
from agentvision.types import ParsedTurn, Turn


def turns(*tokens):
    return tuple(Turn("said", ParsedTurn(answer="x"), tokens=n) for n in tokens)


def equation_13(y, limit, cache):
    """As printed, in exact arithmetic."""
    if y <= limit - cache:
        return Fraction(0)
    return Fraction(limit - cache - y, cache) if y <= limit else Fraction(-1)


@pytest.mark.parametrize(("limit", "cache"), [(20, 4), (20, 20), (20, 1), (7, 3)])
async def test_equals_the_equation_at_every_length(trajectory, limit, cache):
    penalty = LengthPenalty(max_tokens=limit, cache_tokens=cache)
    for y in range(1, 2 * limit):
        score = await penalty(replace(trajectory("x"), turns=turns(y)))
        assert score.value == pytest.approx(float(equation_13(y, limit, cache))), y


async def test_the_longest_turn_counts_and_not_their_sum(trajectory):
    penalty = LengthPenalty(max_tokens=20, cache_tokens=10)
    assert (await penalty(replace(trajectory("x"), turns=turns(9, 10, 9)))).value == 0.0
    assert (await penalty(replace(trajectory("x"), turns=turns(3, 15, 1)))).value == -0.5


async def test_a_fifth_of_the_limit_by_default_as_in_dapo(trajectory):
    penalty = LengthPenalty(max_tokens=20480)
    for tokens, value in ((16384, 0.0), (18432, -0.5), (20480, -1.0)):
        assert (await penalty(replace(trajectory("x"), turns=turns(tokens)))).value == value


async def test_a_policy_that_counts_no_tokens_gives_no_score(trajectory):
    score = await LengthPenalty(max_tokens=20)(trajectory("x"))
    assert score.value is None and "count" in score.reason


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "'max_tokens' is missing"),
        ({"max_tokens": 0}, "at least one"),
        ({"max_tokens": 8, "cache_tokens": 9}, "between 1 and max_tokens"),
        ({"max_tokens": 8, "cache_tokens": 0}, "between 1 and max_tokens"),
        ({"max_tokens": "many"}, "valid integer"),
    ],
)
def test_bad_settings_are_refused(settings, problem):
    with pytest.raises(RecipeError, match=problem):
        Rewards.from_config([{"length_penalty": settings}])
