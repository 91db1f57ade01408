"""What rules can say for sure about an answer, so that no model need be asked. When in doubt they say nothing.

They say 1 when answer and truth are the same text after normalising, name the same option, are the same number in the
same unit, or are equal formulas. They say 0 only of *definite* answers: two different options, two different letters, or
two numbers in one unit that no rounding (5 %) and no power of ten ("in millions") makes the same. Two texts that differ
are never 0: they may be a paraphrase. Where a data set names its rule for a question, that rule decides both ways.
"""

from __future__ import annotations

import math
import re

from agentvision.rewards.accuracy import agrees
from agentvision.rewards.grading import exact_match, normalise, parse_choice
from agentvision.rewards.judge.case import Case
from agentvision.rewards.judge.verdict import Verdict
from agentvision.rewards.maths import MathsError, MathsPool, looks_like_maths
from agentvision.rewards.quantities import Quantity, parse_quantity

ROUNDING = math.log10(1.05)
"""Numbers closer than this (in powers of ten) may be one number, rounded."""

_AMBIGUOUS = re.compile(
    r"/|[0-9][eE][+-]?[0-9]|,(?![0-9]{3}(?![0-9]))"
    r"|(?<![0-9.,])0[0-9]|(?<![0-9.,])[1-9][0-9]{0,2}\.[0-9]{3}(?![0-9])|['’][0-9]|[0-9]s\b"
)
"""Perhaps a date, a code ("007"), a list, a decimal comma, thousands ("3.000") or a decade, and not the number that it
parses as."""


class Rules:
    """Decides cases by rules. `close` ends the workers that compare formulas."""

    def __init__(self) -> None:
        self._pool = MathsPool()

    async def __call__(self, case: Case) -> Verdict | None:
        """The verdict that is beyond doubt, or None: ask."""
        if case.grading is not None:
            return await self._as_the_data_set_says(case)
        found = [definitely(case.answer, truth, case.options) for truth in case.truths]
        if any(found):
            return Verdict(1.0, "the same by rules", by="rules")
        if found and all(same is False for same in found):
            return Verdict(0.0, "another definite answer", by="rules")
        for truth in filter(looks_like_maths, case.truths):
            try:
                if await self._pool.equal(case.answer, truth):
                    return Verdict(1.0, "equal formulas", by="rules")
            except MathsError:  # a judge can still tell
                return None
        return None

    def close(self) -> None:
        self._pool.close()

    async def _as_the_data_set_says(self, case: Case) -> Verdict | None:
        assert case.grading is not None
        found: list[bool | None] = []
        for truth in case.truths:
            try:
                found.append(await agrees(case.grading, case.answer, truth, options=case.options, pool=self._pool))
            except MathsError:
                found.append(None)
        if any(found):
            return Verdict(1.0, f"by rule {case.grading}", by="rules")
        return Verdict(0.0, f"by rule {case.grading}", by="rules") if False in found and None not in found else None


def definitely(answer: str, truth: str, options: dict[str, str]) -> bool | None:
    """Whether the answer is the truth, where that is beyond doubt; else None."""
    if options and (wanted := parse_choice(truth, options)) is not None:
        given = parse_choice(answer, options)
        return None if given is None else given == wanted
    same_text = exact_match(answer, truth) or None
    if _is_letter(answer) and _is_letter(truth):
        return bool(same_text)
    if _AMBIGUOUS.search(answer) or _AMBIGUOUS.search(truth):
        return same_text
    given, wanted_number = parse_quantity(answer), parse_quantity(truth)
    if given is None or wanted_number is None:
        return same_text
    return _same_number(given, wanted_number)


def _same_number(given: Quantity, wanted: Quantity) -> bool | None:
    """Numbers without a unit, or of one dimension, are the same or not; a unit that one side lacks leaves it open."""
    if given.dimension != wanted.dimension:
        return None
    if given.value == wanted.value:
        return True
    if given.value * wanted.value <= 0:  # "a change of -5" and "a decrease of 5"; "0" and "0.004"
        return None
    apart = abs(math.log10(abs(given.value)) - math.log10(abs(wanted.value))) % 1.0
    return None if min(apart, 1.0 - apart) <= ROUNDING else False


def _is_letter(text: str) -> bool:
    bare = normalise(text).strip("()")
    return len(bare) == 1 and bare.isascii() and bare.isalpha()
