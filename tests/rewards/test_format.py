"""The strict format reward over every way a turn can be wrong."""

import pytest

from agentvision.rewards import Format
from agentvision.types import (
    ParsedTurn,
    ParseProblem,
    Sample,
    StopReason,
    ToolCall,
    ToolError,
    ToolRecord,
    Trajectory,
    Turn,
)

CALL = Turn("", ParsedTurn(call=ToolCall("crop", {})), tool=ToolRecord(ToolCall("crop", {}), views=(2,)))
ANSWER = Turn("", ParsedTurn(answer="blue"))


def episode(*turns, stop=StopReason.ANSWERED, answer="blue"):
    return Trajectory(Sample("s", "q"), turns, messages=(), views=(), stop=stop, answer=answer)


@pytest.mark.parametrize("turns", [(ANSWER,), (CALL, ANSWER), (CALL, CALL, ANSWER)])
async def test_well_formed_episodes_score_one(turns):
    assert (await Format()(episode(*turns))).value == 1.0


@pytest.mark.parametrize("problem", list(ParseProblem))
async def test_any_parse_problem_in_any_turn_scores_zero(problem):
    bad_first = Turn("", ParsedTurn(problem=problem))
    bad_last = Turn("", ParsedTurn(answer="blue", problem=problem))
    for turns in ((bad_first, ANSWER), (CALL, bad_first, ANSWER), (bad_last,), (CALL, bad_last)):
        score = await Format()(episode(*turns))
        assert score.value == 0.0
        assert problem.value in score.reason


@pytest.mark.parametrize("error", list(ToolError))
async def test_a_call_that_did_not_run_scores_zero(error):
    failed = Turn("", CALL.parsed, tool=ToolRecord(ToolCall("crop", {}), error=error))
    for turns in ((failed, ANSWER), (failed, CALL, ANSWER)):
        score = await Format()(episode(*turns))
        assert score.value == 0.0
        assert error.value in score.reason


async def test_a_call_without_a_record_scores_zero():
    assert (await Format()(episode(Turn("", CALL.parsed), ANSWER))).value == 0.0


@pytest.mark.parametrize("stop", [s for s in StopReason if s is not StopReason.ANSWERED])
async def test_an_episode_that_did_not_end_in_an_answer_scores_zero(stop):
    score = await Format()(episode(CALL, ANSWER, stop=stop))
    assert score.value == 0.0
    assert stop.value in score.reason


async def test_no_turns_and_no_answer_score_zero():
    assert (await Format()(episode())).value == 0.0
    assert (await Format()(episode(CALL))).value == 0.0
    assert (await Format()(episode(ANSWER, answer=None))).value == 0.0
