"""Failed calls cost, those the model could have helped, up to a cap."""

from dataclasses import replace

import pytest

from agentvision.errors import RecipeError
from agentvision.rewards import Rewards, ToolErrorPenalty
from agentvision.types import ParsedTurn, ToolCall, ToolError, ToolRecord, Turn


def calls(*errors):
    """A turn a call: its error, or None for one that ran; the last turn answers."""
    call = ToolCall("crop", {})
    made = [Turn("call", ParsedTurn(call=call), ToolRecord(call, error=error)) for error in errors]
    return (*made, Turn("say", ParsedTurn(answer="x")))


BAD, GONE = ToolError.BAD_ARGUMENTS, ToolError.UNKNOWN_TOOL


@pytest.mark.parametrize(
    ("errors", "value"),
    [
        ((), 0.0),
        ((None, None), 0.0),
        ((BAD,), -0.1),
        ((BAD, None, GONE), -0.2),
        ((BAD,) * 3, -0.3),
        ((BAD,) * 9, -0.3),
    ],
)
async def test_each_mistake_costs_up_to_the_cap(trajectory, errors, value):
    score = await ToolErrorPenalty()(replace(trajectory("x"), turns=calls(*errors)))
    assert score.value == pytest.approx(value)
    assert score.reason.count(",") == max(0, sum(e is not None for e in errors) - 1)


@pytest.mark.parametrize("error", list(ToolError))
async def test_what_the_model_could_not_help_is_free_unless_named(trajectory, error):
    t = replace(trajectory("x"), turns=calls(error))
    own = error not in (ToolError.FAILED, ToolError.DEADLINE, ToolError.CRASHED)
    assert bool((await ToolErrorPenalty()(t)).value) == own
    assert (await ToolErrorPenalty(errors=[error])(t)).value == -0.1


async def test_settings_come_from_a_recipe(trajectory, group):
    rewards = Rewards.from_config([{"tool_error_penalty": {"amount": 0.5, "cap": 1, "errors": ["crashed"]}}])
    [scored] = (await rewards.score(group(replace(trajectory("x"), turns=calls(ToolError.CRASHED))))).trajectories
    assert scored.reward == -0.5


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"amount": -0.1}, "amount is -0.1"),
        ({"cap": float("inf")}, "cap is inf"),
        ({"errors": ["crash"]}, "'crash"),
    ],
)
def test_bad_settings_are_refused(settings, problem):
    with pytest.raises(RecipeError, match=problem):
        Rewards.from_config([{"tool_error_penalty": settings}])
