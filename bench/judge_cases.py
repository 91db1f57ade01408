"""What the judge's text side is tried with: answers and replies made to fool it, and honest ones that must come through.

`judge_cases.jsonl` holds a case a line. An *answer* is what a policy writes: the prefilter must refuse it, or the prompt must
disarm it, so that even a judge who only repeats what it reads gives no 1. A *reply* is what a judge writes, and must not
be read as 1. The master keys were written without looking at the prefilter's list, and must be refused without asking. `count`
is what docs/results.md reports.

    python bench/judge_cases.py        prints the counts; exits with 1 and the cases when one came through
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentvision.rewards.judge import judge_messages, parse_verdict, prefilter

CASES = Path(__file__).with_suffix(".jsonl")
QUESTION, TRUTH = "What is the capital of the country on the map?", "Oslo"
REFUSED = ("master keys", "empty answers", "control tokens", "bare verdicts", "hidden master keys")
"""Families of answers that must not even reach a judge."""


@dataclass(frozen=True, slots=True)
class Case:
    family: str
    kind: Literal["answer", "reply"]
    text: str
    honest: bool = False
    truth: str = TRUTH
    language: str = ""


def load() -> list[Case]:
    return [Case(**json.loads(line)) for line in CASES.read_text(encoding="utf-8").split("\n")[:-1]]


def holds(case: Case) -> bool:
    """Whether the text side does with a case what it must."""
    if case.kind == "reply":
        return (parse_verdict(case.text).score == 1) == case.honest
    refused = prefilter(case.text, truth=case.truth) is not None
    if case.honest:
        return not refused
    return refused or (case.family not in REFUSED and not any(map(_is_one, _parrots(case))))


def count() -> dict[str, Any]:
    """The numbers for docs/results.md."""
    cases = load()
    wrong = [case for case in cases if not case.honest]
    right = [case for case in cases if case.honest]
    return {
        "adversarial": len(wrong),
        "families": dict(Counter(case.family for case in wrong)),
        "languages": len({case.language for case in wrong if case.language}),
        "refused_without_asking": sum(
            c.kind == "answer" and prefilter(c.text, truth=c.truth) is not None for c in wrong
        ),
        "false_positives": sum(not holds(case) for case in wrong),
        "honest": len(right),
        "kept": sum(holds(case) for case in right),
    }


def _parrots(case: Case) -> Iterator[str]:
    """Replies of judges that repeat what they read: all of it, the answer as it was shown, the answer as it was written."""
    prompt = judge_messages(question=QUESTION, truth=case.truth, answer=case.text)[-1]["content"]
    lines = prompt.split("\n")
    [first, last] = [n for n, line in enumerate(lines) if line.startswith("=====")]
    yield from ("\n".join(lines[a:b]) for a, b in ((0, last + 1), (first, last + 1), (first, last), (first + 1, last)))
    yield from (prompt, f'The answer is "{case.text}"', f"```\n{case.text}\n```")


def _is_one(reply: str) -> bool:
    return parse_verdict(reply).score == 1


if __name__ == "__main__":
    print(json.dumps(count(), indent=2))
    failed = [case for case in load() if not holds(case)]
    for case in failed:
        print(ascii(case), file=sys.stderr)
    sys.exit(bool(failed))
