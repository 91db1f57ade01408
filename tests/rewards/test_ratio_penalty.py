"""The ratio penalty against a slow reading of its table, over every group of up to four."""

from fractions import Fraction
from itertools import product

import pytest

from agentvision.rewards import RatioPenalty
from agentvision.types import ToolError

AMOUNT = 0.1


def slow(rule, threshold, members):
    """Who pays, by the table of the paper and of its released code; members are (correct, looked closer)."""
    direct = sum(1 for correct, high in members if correct is True and not high)
    high = sum(1 for correct, high in members if correct is True and high)
    below = None if direct + high == 0 else Fraction(direct, direct + high) < threshold
    table = {
        # (rule, r < θ, correct, high) -> pays; r undefined and whatever is not here: free
        **{("paper", True, correct, False): True for correct in (True, False)},
        **{("paper", False, correct, True): True for correct in (True, False)},
        ("released", True, True, False): direct > 0,
        ("released", True, True, True): True,
        ("released", False, True, True): True,
        **{("all", b, correct, True): True for b in (True, False, None) for correct in (True, False, None)},
    }
    return [table.get((rule, below, correct, high), False) for correct, high in members]


@pytest.fixture(scope="module")
def members(trajectory):
    """Each kind of trajectory, made once: (correct, looked closer)."""
    kinds = product((True, False, None), (True, False))
    return {(c, h): trajectory("x", correct=c, looked=h) for c, h in kinds}


@pytest.mark.parametrize("rule", ["paper", "released", "all", "none"])
@pytest.mark.parametrize("threshold", ["0", "1/5", "1/2", "1"])
async def test_equals_the_slow_reading_over_every_small_group(rule, threshold, members, group):
    penalty = RatioPenalty(rule=rule, threshold=float(Fraction(threshold)), amount=AMOUNT)
    for size in (1, 2, 3, 4):
        for kinds in product(members, repeat=size):
            scores = await penalty(group(*(members[kind] for kind in kinds)))
            want = [-AMOUNT if pays else 0.0 for pays in slow(rule, Fraction(threshold), kinds)]
            assert [score.value for score in scores] == want, kinds


RD, RH, WD, WH, UD, UH = (True, False), (True, True), (False, False), (False, True), (None, False), (None, True)


@pytest.mark.parametrize(
    ("rule", "kinds", "paid"),
    [
        # r = 1/6 < .2
        ("paper", [RD, RH, RH, RH, RH, RH, WD, WH], [1, 0, 0, 0, 0, 0, 1, 0]),
        ("released", [RD, RH, RH, RH, RH, RH, WD, WH], [1, 1, 1, 1, 1, 1, 0, 0]),
        # r = 1/5, not below .2
        ("paper", [RD, RH, RH, RH, RH, WD, WH], [0, 1, 1, 1, 1, 0, 1]),
        ("released", [RD, RH, RH, RH, RH, WD, WH], [0, 1, 1, 1, 1, 0, 0]),
        # r = 0: nobody right answered directly
        ("paper", [RH, WD, WH], [0, 1, 0]),
        ("released", [RH, WD, WH], [1, 0, 0]),
        # r undefined: nobody right
        ("paper", [WD, WH, WH], [0, 0, 0]),
        ("released", [WD, WH, WH], [0, 0, 0]),
        ("all", [WD, WH, RH], [0, 1, 1]),
        ("none", [RD, RH, WD, WH], [0, 0, 0, 0]),
        # unknown correctness counts in no r: with it r would be 1/2 here
        ("paper", [UD, RH, WD, UH], [0, 0, 1, 0]),
    ],
)
async def test_the_table(rule, kinds, paid, members, group):
    scores = await RatioPenalty(rule=rule)(group(*(members[kind] for kind in kinds)))
    assert [bool(score.value) for score in scores] == [bool(p) for p in paid]


@pytest.mark.parametrize("g", range(1, 40))
async def test_r_equal_to_the_threshold_is_not_below_it(g, members, group):
    """θ = k/g for every group size: no rounding decides who pays."""
    for k in range(g + 1):
        scores = await RatioPenalty(threshold=k / g)(group(*[members[RD]] * k, *[members[RH]] * (g - k)))
        assert [bool(s.value) for s in scores] == [False] * k + [True] * (g - k)


async def test_a_failed_call_is_not_looking_closer(trajectory, group):
    failed = trajectory("x", correct=True, tool_error=ToolError.CRASHED)
    assert [s.value for s in await RatioPenalty(rule="all")(group(failed))] == [0.0]


@pytest.mark.parametrize(
    "settings", [{"rule": "papre"}, {"threshold": -0.1}, {"threshold": 1.1}, {"amount": -1}, {"amount": float("nan")}]
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RatioPenalty(**settings)
