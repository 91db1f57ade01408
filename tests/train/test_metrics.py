import math
from dataclasses import replace

import pytest

from agentvision.geometry import Affine
from agentvision.train.advantages import group_advantages
from agentvision.train.collect import ScoredGroup
from agentvision.train.metrics import answer_shares, rollout_metrics, staleness_metrics, update_metrics
from agentvision.train.update import UpdateStats
from agentvision.types import (
    Group,
    ParsedTurn,
    Sample,
    Score,
    StopReason,
    TextSegment,
    ToolCall,
    ToolError,
    ToolRecord,
    Trajectory,
    Turn,
    View,
)


def view(index, tokens):
    return View(index, f"h{index}", "o", Affine(), (56, 56), (112, 112), tokens, "first_view")


def trajectory(*, looked=False, failed=False, correct=True, reward=1.0, needs=None, stop=StopReason.ANSWERED):
    call = ToolCall("resize_image", {})
    turns = []
    if looked:
        turns.append(Turn("look", ParsedTurn(call=call), ToolRecord(call, views=(2,)), tokens=5))
    if failed:
        turns.append(Turn("look", ParsedTurn(call=call), ToolRecord(call, error=ToolError.FAILED), tokens=5))
    turns.append(Turn("say", ParsedTurn(answer="a"), tokens=7))
    scores = {"accuracy": Score(float(correct)) if correct is not None else Score.invalid("no judge")}
    return Trajectory(
        Sample("s", "?", meta={} if needs is None else {"needs_original": needs}),
        tuple(turns), (), (view(1, 4), view(2, 16)) if looked else (view(1, 4),), stop,
        full_tokens=16, scores=scores, reward=reward, correct=correct,
    )  # fmt: skip


def measured(*groups):
    scored = [ScoredGroup(Group(g[0].sample, tuple(g)), group_advantages([t.reward for t in g])) for g in groups]
    return rollout_metrics(scored)


def test_calls_are_counted_by_need_and_only_when_a_view_was_delivered():
    hard = [trajectory(looked=True, needs=True), trajectory(failed=True, needs=True, reward=0.0, correct=False)]
    easy = [trajectory(needs=False), trajectory(needs=False)]
    row = measured(hard, easy)
    assert row["call_rate"] == 0.25 and row["call_rate_hard"] == 0.5 and row["call_rate_easy"] == 0
    assert row["accuracy"] == 0.75 and row["accuracy_hard"] == 0.5
    assert row["tool_error"] == {"failed": 0.25}
    assert row["visual_tokens_additive"] == (20 + 4 + 4 + 4) / 4 and row["visual_tokens_replacement"] == (16 + 12) / 4
    assert row["groups"] == 2 and row["groups_no_signal"] == 1 and row["groups_dropped"] == 0
    assert row["stop"]["answered"] == 1 and row["stop"]["length"] == 0


def test_invalid_scores_are_in_no_mean_and_are_counted():
    row = measured([trajectory(), trajectory(reward=None, correct=None)])
    assert row["reward"] == 1.0 and row["accuracy"] == 1.0 and row["reward/accuracy"] == 1.0
    assert row["invalid_share"] == 0.5 and row["groups_dropped"] == 1


def test_without_a_format_reward_the_format_is_read_off_the_grammar():
    row = measured([trajectory(), trajectory(stop=StopReason.LENGTH)])
    assert row["format"] == 0.5


def test_the_mismatch_is_of_the_tokens_that_were_measured():
    row = update_metrics(
        [
            UpdateStats(
                loss=1.0, tokens=10, clipped=1, measured=10, logprob_diff_sum=0.1, logprob_diff_max=0.05,
                importance_sum=12.0, importance_square_sum=20.0, importance_max=3.0, importance_min=0.5, bounded=4,
            ),
            UpdateStats(loss=math.nan, tokens=30, clipped=3, finite=False),
        ]
    )  # fmt: skip
    assert row["logprob_diff_mean"] == pytest.approx(0.01) and row["logprob_diff_max"] == 0.05
    assert (row["importance_mean"], row["importance_max"], row["importance_min"]) == (1.2, 3.0, 0.5)
    assert row["importance_ess"] == pytest.approx(12**2 / (10 * 20)) and row["importance_bounded_share"] == 0.1
    assert row["clip_share"] == 0.1 and row["loss"] == 1.0 and row["updates"] == 1 and row["updates_skipped"] == 1


def test_staleness_is_a_mean_over_tokens_of_groups_with_a_signal():
    def said(version, count):
        return TextSegment((1,) * count, sampled=True, logprobs=(0.0,) * count, version=version)

    ledger = (TextSegment((1,) * 50), said(3, 1), said(4, 3), TextSegment((2,)), said(5, 4))
    lively, dull = (
        [replace(trajectory(reward=r), segments=ledger if r else ()) for r in rewards]
        for rewards in ((1.0, 0.0), (1.0, 1.0))
    )
    scored = [
        ScoredGroup(Group(g[0].sample, tuple(g)), group_advantages([t.reward for t in g])) for g in (lively, dull)
    ]
    assert staleness_metrics(scored, version=5) == {"staleness_mean": (2 + 3) / 8, "staleness_max": 2}
    assert staleness_metrics(scored[1:], version=5) == {"staleness_mean": None, "staleness_max": None}


def test_a_step_without_an_update_has_no_numbers_of_one():
    row = update_metrics([])
    assert row["updates"] == 0 and row["loss"] is None and row["clip_share"] is None


def test_rewards_that_no_float_can_sum_are_no_number():
    row = measured([trajectory(reward=1.7e308), trajectory(reward=1.7e308), trajectory(reward=-1.7e308)])
    assert row["reward"] is None or math.isfinite(row["reward"])
    assert measured([trajectory(reward=1.7e308)] * 2)["reward"] is None


# --- shares of answers ----------------------------------------------------------------------------------------------


def asked(name, truth, *answers):
    sample = Sample(name, "?", answer=truth)
    return Group(sample, tuple(Trajectory(sample, (), (), (), StopReason.ANSWERED, answer=a) for a in answers))


def shares(*groups):
    result = answer_shares(groups)
    return result["answer_top_share"], result["truth_top_share"]


def test_a_question_counts_once_however_its_answers_agree():
    assert shares(asked("a", "1", "1", "1"), asked("b", "2", "2", "2"), asked("c", "3", "3", "3")) == (
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
    )
    assert shares(asked("a", "1", "Yes.", "yes"), asked("b", "2", r"\boxed{YES}", "no")) == (0.75, 0.5)
    assert shares(asked("a", "1", "1"), asked("a", "1", "1"), asked("b", "2", "2")) == (0.5, 0.5)


def test_answers_that_are_missing_converge_on_nothing():
    assert shares(asked("a", "1", None, None), asked("b", "2", None, "x")) == (0.25, 0.5)
    assert shares(asked("a", "1", None)) == (0, 1)


def test_without_truths_there_is_nothing_to_compare_with():
    assert shares(asked("a", None, "x")) == (None, None)
    assert shares(asked("a", None, "x"), asked("b", "2", "x")) == (1.0, 1.0)
