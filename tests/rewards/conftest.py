"""Trajectories and groups spelled out in a line each."""

import pytest

from agentvision.types import (
    Group,
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


def make_trajectory(
    answer=None,
    *,
    truth="blue",
    question="Which colour?",
    meta=None,
    looked=False,
    tool_error: ToolError | None = None,
    problem: ParseProblem | None = None,
    stop: StopReason | None = None,
    correct: bool | None = None,
    views=(),
    **others,
) -> Trajectory:
    """One that answered, unless `answer` is None; after a tool call, when it looked closer or its tool failed."""
    turns = []
    if looked or tool_error:
        call = ToolCall("resize_image", {})
        record = ToolRecord(call, views=(2,) if looked else (), error=tool_error)
        turns.append(Turn("call", ParsedTurn(think="", call=call), tool=record))
    turns.append(Turn("end", ParsedTurn(think="", answer=answer, problem=problem)))
    return Trajectory(
        sample=Sample("s1", question, answer=truth, meta=meta or {}),
        turns=tuple(turns),
        messages=(),
        views=views,
        stop=stop or (StopReason.LENGTH if answer is None else StopReason.ANSWERED),
        answer=answer,
        correct=correct,
        **others,
    )


def make_group(*trajectories: Trajectory) -> Group:
    return Group(trajectories[0].sample, trajectories)


@pytest.fixture(scope="session")
def trajectory():
    return make_trajectory


@pytest.fixture(scope="session")
def group():
    return make_group
