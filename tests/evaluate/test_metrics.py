"""The numbers of an evaluation, against values worked out by hand and by brute force."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentvision.evaluate.metrics import mean, proportion, ratio, summarize
from agentvision.images import ImageStore
from agentvision.types import Score, StopReason, TextSegment, ToolCall, ToolError, ToolRecord

from ..scripted import trajectory


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe (1998), Table I: the score method without continuity correction.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_proportion_is_the_published_one(hits: int, n: int, low: float, high: float) -> None:
    estimate = proportion([True] * hits + [False] * (n - hits))
    assert estimate.value == hits / n
    assert estimate.ci == pytest.approx([low, high], abs=5e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=400))
def test_an_interval_lies_in_0_to_1_around_its_estimate_and_is_never_a_point(outcomes: list[bool]) -> None:
    estimate = proportion(outcomes)
    assert estimate.value is not None and estimate.low is not None and estimate.high is not None
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


def test_the_wilson_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    for p in (0.02, 0.5, 0.97):
        draws = rng.binomial(500, p, size=2000)
        hit = 0
        for k, times in zip(*np.unique(draws, return_counts=True), strict=True):
            ci = proportion([True] * int(k) + [False] * (500 - int(k))).ci
            assert ci is not None
            hit += int(times) * (ci[0] <= p <= ci[1])
        assert 0.93 <= hit / 2000 <= 0.97


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_interval_and_repeats() -> None:
    values = np.random.default_rng(0).gamma(2.0, 10.0, size=400).tolist()
    estimate = mean(values, seed=1)
    half = 1.96 * float(np.std(values)) / math.sqrt(len(values))
    middle = float(np.mean(values))
    assert estimate.value == pytest.approx(middle)
    assert estimate.ci == pytest.approx([middle - half, middle + half], abs=0.1 * half)
    assert mean(values, seed=1) == estimate


def test_a_ratio_weighs_questions_by_their_size() -> None:
    assert ratio([1, 10], [10, 10]).value == 0.55
    assert ratio([], []).value is None
    assert ratio([1.0], [0.0]).value is None


def test_a_summary_counts_what_happened() -> None:
    store = ImageStore()
    easy = [trajectory(store, hard=False, called=called) for called in (False, False, False, True)]
    hard = [trajectory(store, hard=True, called=called, correct=called) for called in (True, True, False)]
    invalid = replace(
        trajectory(store, correct=None), scores={"accuracy": Score.invalid("judge"), "format": Score(0.0)}
    )
    lost = trajectory(store, hard=True, correct=False, stop=StopReason.MAX_TURNS)
    summary = summarize([*easy, *hard, invalid, lost])
    assert summary["n"] == 9
    assert summary["accuracy"] == 6 / 8  # the invalid one is in neither count
    assert summary["format"] == 8 / 9
    assert summary["call_rate"] == 3 / 9
    assert summary["call_rate_easy"] == 1 / 4
    assert summary["call_rate_hard"] == 2 / 4
    assert summary["accuracy_hard"] == 2 / 4
    assert summary["accuracy_called"] == 1
    assert (summary["n_easy"], summary["n_hard"], summary["invalid"]) == (4, 4, 1)
    # 3 tokens for the first view, 12 for the original
    assert summary["visual_tokens_additive"] == pytest.approx((6 * 3 + 3 * 15) / 9)
    assert summary["visual_tokens_replacement"] == pytest.approx((6 * 3 + 3 * 12) / 9)
    assert summary["visual_tokens_full"] == 12
    assert summary["visual_share_additive_weighted"] == pytest.approx((6 * 3 + 3 * 15) / (9 * 12))
    assert summary["stop"] == {"answered": 8, "max_turns": 1}
    assert summary["tool_calls"] == {"ok": 3}
    for name in ("accuracy", "format", "call_rate", "call_rate_easy", "call_rate_hard"):
        low, high = summary[f"{name}_ci"]
        assert low <= summary[name] <= high
    json.dumps(summary, allow_nan=False)


def test_a_failed_call_is_not_a_closer_look() -> None:
    t = trajectory(ImageStore(), called=True)
    failed = replace(t.turns[0], tool=ToolRecord(ToolCall("resize_image", {}), error=ToolError.FAILED))
    summary = summarize([replace(t, turns=(failed, t.turns[1]), views=t.views[:1])])
    assert summary["call_rate"] == 0
    assert summary["tool_calls"] == {"failed": 1}


def test_text_that_was_read_and_written_is_told_apart() -> None:
    segments = (TextSegment((1, 2, 3)), TextSegment((4, 5), sampled=True, logprobs=(0.0, 0.0)), TextSegment((6,)))
    summary = summarize([replace(trajectory(ImageStore()), segments=segments)])
    assert summary["text_tokens"] == 4
    assert summary["output_tokens"] == 5  # as the turns say


def test_what_cannot_be_measured_is_none_and_not_zero() -> None:
    summary = summarize([trajectory(ImageStore(), correct=None)])
    for name in ("accuracy", "call_rate_easy", "call_rate_hard"):
        assert summary[name] is None
        assert summary[f"{name}_ci"] is None
    assert summarize([])["n"] == 0
