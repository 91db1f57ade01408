"""The audit set is sound: labelled, unique, balanced, and contradicted by no rule; its scores are what they say."""

import asyncio
from collections import Counter

import pytest

from agentvision.rewards import Accuracy
from agentvision.rewards.judge import Verdict, prefilter
from agentvision.rewards.judge.audit import audit_cases, score_audit

CASES = audit_cases()


def test_every_case_is_whole_and_stands_there_once():
    assert len(CASES) >= 300
    for case in CASES:
        assert case.label in (0, 1) and type(case.label) is int
        for text in (case.id, case.family, case.question, case.truth, case.answer, case.note):
            assert isinstance(text, str) and text.strip(), case
        assert case.id.startswith(case.family.replace(" ", "-") + "-")
        assert all(isinstance(other, str) and other.strip() and other != case.truth for other in case.accepted)
    assert len({case.id for case in CASES}) == len(CASES)
    assert len({(case.question, case.truth, case.answer) for case in CASES}) == len(CASES)


def test_labels_are_balanced_and_no_family_has_but_one():
    assert 0.45 <= sum(case.label for case in CASES) / len(CASES) <= 0.55
    count = Counter((case.family, case.label) for case in CASES)
    families = {case.family for case in CASES}
    assert len(families) >= 12
    for family in families:
        assert min(count[family, 0], count[family, 1]) >= 5, family


def test_it_speaks_many_languages():
    blocks = {"cyrillic": "а", "arabic": "ا", "han": "图", "kana": "で", "hangul": "명", "devanagari": "त", "thai": "ห"}
    text = "".join(case.question + case.truth + case.answer for case in CASES if case.family == "languages")
    assert [name for name, letter in blocks.items() if letter not in text] == []
    starts = ("Welche", "Quel", "¿", "Que fruta", "Che ore", "Bu hangi", "Đây")
    assert [start for start in starts if not any(case.question.startswith(start) for case in CASES)] == []


def test_it_is_not_one_sentence_said_over_and_over():
    questions = Counter(case.question for case in CASES)
    assert len(questions) >= 120
    answers = Counter(case.answer.casefold() for case in CASES)
    assert max(answers.values()) <= 5


def test_the_prefilter_refuses_no_right_answer():
    refused = [c for c in CASES if prefilter(c.answer, truth=c.truth, accepted=c.accepted) is not None]
    assert [case.id for case in refused if case.label] == []
    assert len(refused) >= 8


KNOWN = {"units-09"}
"""The question names the unit, which rules do not read: to them "500 ounces" is the number 500."""


def test_the_rules_of_accuracy_pay_for_no_wrong_answer(trajectory):
    rules = Accuracy()

    async def ask(case):
        meta = {"answers": list(case.accepted)}
        return await rules(trajectory(case.answer, truth=case.truth, question=case.question, meta=meta))

    async def ask_all():
        return await asyncio.gather(*map(ask, CASES))

    paid = [case for case, score in zip(CASES, asyncio.run(ask_all()), strict=True) if score.value == 1]
    assert {case.id for case in paid if not case.label} == KNOWN
    assert sum(case.label for case in paid) >= 35


def of(*scores):
    return [Verdict(score, "why" if score is None else "") for score in scores]


def test_scores_are_shares_of_the_valid_verdicts_with_their_intervals():
    chosen = [*[c for c in CASES if c.label][:5], *[c for c in CASES if not c.label][:5]]
    result = score_audit(chosen, of(1, 1, 1, 0, None, 0, 0, 1, None, None))
    overall = result.overall
    assert overall.cases == 10
    assert overall.invalid.value == pytest.approx(3 / 10)
    assert overall.accuracy.value == pytest.approx(5 / 7)
    assert overall.false_positives.value == pytest.approx(1 / 3)
    assert overall.false_negatives.value == pytest.approx(1 / 4)
    for estimate in (overall.accuracy, overall.false_positives, overall.false_negatives, overall.invalid):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert [(case.id, verdict.score) for case, verdict in result.mistakes] == [(chosen[3].id, 0), (chosen[7].id, 1)]


def test_a_perfect_judge_and_one_that_always_says_yes():
    perfect = score_audit(CASES, [Verdict(float(case.label)) for case in CASES])
    assert perfect.overall.accuracy.value == 1 and perfect.overall.false_positives.value == 0 and not perfect.mistakes
    assert perfect.overall.false_positives.high < 0.03
    assert sum(scores.cases for scores in perfect.families.values()) == len(CASES)
    gullible = score_audit(CASES, of(*[1] * len(CASES)))
    assert gullible.overall.false_positives.value == 1 and gullible.overall.false_negatives.value == 0
    assert gullible.overall.accuracy.value == pytest.approx(sum(case.label for case in CASES) / len(CASES))
    assert len(gullible.mistakes) == sum(not case.label for case in CASES)


def test_a_judge_without_a_verdict_has_no_accuracy_and_grades_count_from_the_middle():
    silent = score_audit(CASES, of(*[None] * len(CASES)))
    assert silent.overall.accuracy.value is None and silent.overall.invalid.value == 1
    right = [case for case in CASES if case.label][:4]
    assert score_audit(right, of(0.4, 0.5, 0.9, 1.0)).overall.accuracy.value == pytest.approx(3 / 4)
    with pytest.raises(ValueError, match="zip"):
        score_audit(CASES, [])
