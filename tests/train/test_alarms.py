"""Alarms on histories made by hand: what must ring does, once, and what is healthy does not."""

import random

import pytest

from agentvision.recipe.alarms import Alarms
from agentvision.train.alarms import Watch


def rows(n=40, **columns):
    """Healthy rows with some columns put in their place: each a number or a function of the step."""
    healthy = {"call_rate": 0.5, "format": 0.98, "accuracy": 0.7, "invalid_share": 0.0, "groups": 16}
    healthy |= {"groups_no_signal": 3, "groups_dropped": 0, "answer_top_share": 0.1, "truth_top_share": 0.1}
    columns = healthy | columns
    return [{"step": k} | {n: c(k) if callable(c) else c for n, c in columns.items()} for k in range(1, n + 1)]


def rung(history, *, tools=True, **settings):
    """(step, name) of each alarm that was told."""
    watch = Watch(Alarms.model_validate(settings), tools=tools)
    return [(alarm.step, alarm.name) for row in history for alarm in watch.observe(row)]


def noise(seed, spread=0.05):
    rng = random.Random(seed)
    return lambda: rng.uniform(-spread, spread)


def ramp(a, b, *, after=10, steps=20):
    """From a to b between two steps."""
    return lambda k: a + (b - a) * min(max((k - after) / steps, 0), 1)


def noisy(curve, seed):
    draw = noise(seed)
    return lambda k: min(max(curve(k) + draw(), 0), 1)


# --- histories that are healthy -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_run_rings_nothing(seed):
    """It learns when to look: the form gets better, the accuracy too, the call rate moves and comes back to a half."""
    history = rows(
        60,
        call_rate=noisy(lambda k: 0.5 + 0.4 * (10 < k < 15), seed),
        accuracy=noisy(ramp(0.6, 0.95), seed + 100),
        format=noisy(ramp(0.7, 0.95, after=0), seed + 200),
        groups_no_signal=lambda k: 16 if k % 4 == 0 else 9,
        invalid_share=noisy(lambda k: 0.0, seed + 300),
        answer_top_share=noisy(lambda k: 0.2, seed + 400),
    )
    assert rung(history) == []


@pytest.mark.parametrize("seed", range(20))
def test_noise_around_a_level_is_no_trend(seed):
    flat = noisy(lambda k: 0.7, seed), noisy(lambda k: 0.7, seed + 1000)
    assert rung(rows(60, accuracy=flat[0], format=flat[1])) == []


# --- the call rate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_a_pinned_call_rate_rings_once(end):
    [(step, name)] = rung(rows(call_rate=ramp(0.5, end, after=0, steps=10)))
    assert name == "call_rate" and 15 <= step <= 20


def test_a_wild_step_does_not_hide_that_the_call_rate_is_pinned():
    assert rung(rows(call_rate=lambda k: 0.9 if k == 15 else 1.0)) == [(10, "call_rate")]


def test_without_tools_there_is_no_call_rate_to_pin():
    assert rung(rows(call_rate=0.0), tools=False) == []
    assert rung(rows(call_rate=None)) == []


def test_an_alarm_comes_back_only_after_a_silence_as_long_as_it_looks_back():
    flicker = rows(call_rate=lambda k: 1.0 if k % 5 else 0.8)  # a mean of .96: silent
    assert rung(flicker) == []
    margin = {"call_rate": {"margin": 0.05}}
    assert rung(flicker, **margin) == [(10, "call_rate")]
    between = rows(60, call_rate=lambda k: 0.94 if 11 <= k <= 14 else 1.0)
    assert rung(between, **margin) == [(10, "call_rate")]
    twice = rows(60, call_rate=lambda k: 0.5 if 15 <= k <= 25 else 1.0)
    assert [name for _, name in rung(twice, **margin)] == ["call_rate", "call_rate"]


# --- format against accuracy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_form_that_rises_while_answers_get_worse_rings_once(seed):
    history = rows(45, accuracy=noisy(ramp(0.7, 0.4), seed), format=noisy(ramp(0.6, 0.9), seed + 50))
    [(step, name)] = rung(history)
    assert name == "format_over_accuracy" and 18 <= step <= 32


@pytest.mark.parametrize(
    "columns",
    [
        {"accuracy": ramp(0.7, 0.4)},
        {"format": ramp(0.6, 0.9)},
        {"accuracy": ramp(0.7, 0.4), "format": ramp(0.9, 0.6)},
        {"accuracy": ramp(0.7, 0.9), "format": ramp(0.6, 0.9)},
        {"accuracy": ramp(0.7, 0.67), "format": ramp(0.6, 0.9)},
        {"accuracy": ramp(0.7, 0.4, steps=1), "format": lambda k: 0.9 if k % 2 else 0.6},
        {"accuracy": lambda k: None if k == 20 else 0.9 - k / 50, "format": ramp(0.6, 0.9, after=12, steps=8)},
    ],
    ids=["form stays", "accuracy stays", "both fall", "both rise", "hardly falls", "form flickers", "not known"],
)
def test_one_without_the_other_does_not_ring(columns):
    assert rung(rows(30, **columns)) == []


# --- the others -----------------------------------------------------------------------------------------------------


def test_invalid_rewards_ring_when_they_stay():
    assert rung(rows(invalid_share=lambda k: 0.3 * (k == 9))) == []
    assert rung(rows(invalid_share=lambda k: 0.3 * (k >= 9))) == [(10, "invalid")]
    assert rung(rows(invalid_share=0.0), invalid={"share": 0}) == []


def test_answers_that_converge_ring_and_binary_questions_do_not():
    assert [name for _, name in rung(rows(answer_top_share=ramp(0.1, 1.0)))] == ["one_answer"]
    assert rung(rows(answer_top_share=0.6, truth_top_share=0.5)) == []
    assert rung(rows(answer_top_share=1.0, truth_top_share=0.5)) == [(10, "one_answer")]
    assert rung(rows(answer_top_share=None, truth_top_share=None)) == []


@pytest.mark.parametrize(
    ("audited", "agreed", "rings"),
    [
        (4, 0, []),  # 40 in ten steps: too few to say
        (5, 0, [(10, "judge_drift")]),
        (5, 4.2, []),  # .84 of 50, but the interval reaches .92
        (5, 3.7, [(10, "judge_drift")]),
        (50, 42, [(10, "judge_drift")]),
        (50, 46, []),
    ],
)
def test_a_judge_rings_when_it_surely_agrees_too_seldom(audited, agreed, rings):
    columns = {"judge/audited": audited, "judge/agreed": agreed}
    assert rung(rows(**columns)) == rings
    assert rung(rows(**columns), judge_drift={"agreement": 0.0}) == []


def test_a_judge_that_mends_or_is_not_audited_rings_no_more():
    history = rows(**{"judge/audited": 20, "judge/agreed": lambda k: 20 if k > 15 else 5})
    assert rung(history) == [(10, "judge_drift")]
    assert rung(history[20:]) == []
    assert rung([{k: v for k, v in row.items() if not k.startswith("judge/")} for row in history]) == []


def test_log_probs_that_differ_ring():
    assert rung(rows(logprob_diff_mean=0.02)) == [] == rung(rows(logprob_diff_mean=None))
    assert rung(rows(logprob_diff_mean=lambda k: 0.3 * (k > 12))) == [(14, "mismatch")]
    assert rung(rows(logprob_diff_mean=0.02), mismatch={"logprob_diff": 0.01}) == [(5, "mismatch")]


def test_steps_without_any_signal_ring():
    assert rung(rows(groups_no_signal=lambda k: 16 if k % 5 else 15)) == []
    assert rung(rows(groups_no_signal=14, groups_dropped=2)) == [(5, "no_signal")]


# --- the watch ------------------------------------------------------------------------------------------------------


def test_modes():
    pinned = rows(12, call_rate=1.0)
    assert rung(pinned, call_rate={"mode": "off"}) == []
    for mode in ("warn", "stop"):
        watch = Watch(Alarms.model_validate({"call_rate": {"mode": mode}}), tools=True)
        [alarm] = [alarm for row in pinned for alarm in watch.observe(row)]
        assert alarm.stops == (mode == "stop") and "always looks closer" in alarm.text
    everything = {name: {"mode": "off"} for name in Alarms.model_fields}
    assert rung(rows(call_rate=1.0, groups_no_signal=16), **everything) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_watch_that_is_shown_the_past_goes_on_as_one_that_saw_it(seed):
    """Wherever a run is cut: nothing is told twice and nothing is left out."""
    rng = random.Random(seed)
    rates = [1.0 if rng.random() < 0.8 else 0.9 for _ in range(60)]
    history = rows(60, call_rate=lambda k: rates[k - 1], groups_no_signal=lambda k: 16 * (k % 17 > 6))
    settings = Alarms.model_validate({"call_rate": {"steps": 3}})

    def told(watch, part):
        return [(alarm.step, alarm.name) for row in part for alarm in watch.observe(row)]

    whole = told(Watch(settings, tools=True), history)
    assert len(whole) > 3
    for cut in range(0, 60, 7):
        resumed = told(Watch(settings, tools=True, past=history[:cut]), history[cut:])
        assert resumed == [alarm for alarm in whole if alarm[0] > cut]
