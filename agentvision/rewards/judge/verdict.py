"""What a judge's reply says: a score, or invalid with the reason. Never a guess, never an exception.

The verdict is the *end* of the reply, alone on its line (`Score: 1`) or as a JSON object (`{"reason": …, "score": 1}`):
what stands earlier may be a quotation of the answer, and so may a verdict that other text follows. For the same reason
quotes, backticks, `>`, code blocks around it, a line before it that announces a quotation, or the other score right
above it make a reply invalid: paying for a wrong answer costs more than asking again. Only the ASCII digits and words that
the prompt asks for count; `1.0`, `１`, `1/1`, `yes` and anything invisible within the line do not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentvision._strict_json import strict_json

MAX_LINE = 80
"""A longer line is no textual verdict."""
LOOK_BACK = 20
"""How many lines above the verdict may make it an option among others."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`score` is 1, 0, or between them by a graded template; None: invalid. `by` names who gave it."""

    score: float | None
    reason: str = ""
    by: str = ""

    @property
    def valid(self) -> bool:
        return self.score is not None


_LINE = r"[ \t]*(?:#{{1,6}} |[-+] )?(?:final )?score ?[:：] {{0,4}}({})\.?[ \t\r]*"
_VERDICT = {
    graded: re.compile(_LINE.format(number), re.IGNORECASE | re.ASCII)
    for graded, number in ((False, r"[01]"), (True, r"0(?:\.[0-9]{1,4})?|1(?:\.0{1,4})?"))
}
_EMPHASIS = str.maketrans("", "", "*_")
_THINK_TAG = re.compile(r"[<\[◁](/?)(?:seed:)?(?:think|thinking|thought|reasoning)[>\]▷]", re.IGNORECASE)
_FENCED = re.compile(r"```[a-z]{0,10}[ \t]*\n(.*[^`\s])\s*```", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_INCHES = re.compile(r'[0-9]"')
_COLON = re.compile(r"[:：][*_\s]{0,9}\Z")
# A line that ends in a colon announces what follows: a verdict, or a quotation.
_HEADING = re.compile(
    r"\W*(?:(?:my|the|final|overall) ){0,3}(?:verdict|score|grade|rating|judge?ment|decision|conclusion|evaluation)(?: is)?\W*",
    re.IGNORECASE,
)


def parse_verdict(text: object, *, graded: bool = False) -> Verdict:
    """Read a judge's reply. Total: any object gives a `Verdict`, in time linear in its length.

    `graded` admits numbers from 0 to 1 (`Score: 0.7`), else only 0 and 1 are scores.
    """
    if not issubclass(type(text), str):
        return Verdict(None, f"the reply is no text but {type(text).__name__}")
    try:
        return Verdict(_read(str.__str__(text), graded))  # type: ignore[arg-type]
    except _Invalid as problem:
        return Verdict(None, str(problem))


def verdict_schema(*, graded: bool = False) -> dict[str, Any]:
    """The JSON schema of a reply, for providers with structured output. The reason comes first: it is the thinking."""
    score = {"type": "number", "minimum": 0, "maximum": 1} if graded else {"type": "integer", "enum": [0, 1]}
    return {
        "type": "object",
        "properties": {"reason": {"type": "string"}, "score": score},
        "required": ["reason", "score"],
        "additionalProperties": False,
    }


class _Invalid(Exception):
    """There is no verdict; the text is the reason."""


def _read(text: str, graded: bool) -> float:
    reply = _after_thinking(text.replace("\r\n", "\n")).strip()
    fenced = _FENCED.fullmatch(reply)
    if fenced and ("\n" not in fenced[1] or fenced[1].startswith("{")):
        reply = fenced[1].strip()
    if not reply:
        raise _Invalid("the reply is empty")
    if reply.startswith("{"):  # nothing but JSON, so that no string within it can pass for the end of a text
        return _from_json(reply, graded)
    lines = reply.split("\n")  # of all line ends only this one: a quoted answer may hold the others
    start = len(lines) - 1
    if lines[-1].endswith("}"):
        start = next((n for n in range(start, -1, -1) if lines[n].startswith("{")), start)
    verdict = "\n".join(lines[start:])
    score = _from_json(verdict, graded) if verdict.startswith("{") else _from_line(verdict, graded)
    _check_above(lines[:start], score, graded)
    return score


def _after_thinking(text: str) -> str:
    """What follows a reasoning model's thinking, whose opening tag may have been the prompt's."""
    end, inside = 0, False
    for tag in _THINK_TAG.finditer(text):
        closing = bool(tag[1])
        lone = closing and not end and not text[text.rfind("\n", 0, tag.start()) + 1 : tag.start()].strip()
        if closing != inside and not lone:
            raise _Invalid(f"the tags of thinking do not pair: {_brief(tag[0])}")
        end, inside = tag.end(), not closing
    if inside:
        raise _Invalid("the reply ends within its thinking")
    return text[end:]


def _from_line(line: str, graded: bool) -> float:
    found = _VERDICT[graded].fullmatch(line.translate(_EMPHASIS)) if len(line) <= MAX_LINE else None
    if found is None:
        raise _Invalid(f"the last line is no verdict: {_brief(line)}")
    return float(found[1])


def _from_json(text: str, graded: bool) -> float:
    try:
        value = strict_json(text)
    except RecursionError:
        raise _Invalid("the JSON is nested too deeply") from None
    except ValueError as error:
        raise _Invalid(f"the JSON cannot be read: {_brief(str(error))}") from None
    if not isinstance(value, Mapping):
        raise _Invalid(f"the JSON is no object: {_brief(text)}")
    scores = [item for key, item in value.items() if key.strip().casefold() == "score"]
    if len(scores) != 1:
        raise _Invalid(f"the JSON has {len(scores)} scores")
    score = scores[0]
    if type(score) is int and score in (0, 1):
        return float(score)
    if graded and type(score) is float and math.isfinite(score) and 0 <= score <= 1:
        return score
    raise _Invalid(
        f"the score is {_brief(str(score)) if isinstance(score, str | int | float) else type(score).__name__}"
    )


def _check_above(lines: list[str], score: float, graded: bool) -> None:
    """Refuse a verdict that what stands above it makes an option among others, or part of a quotation."""
    text = "\n".join(lines)
    if len(_FENCE.findall(text)) % 2:
        raise _Invalid("the last line stands in a code block")
    odd = text.count('"') % 2 and not _INCHES.search(text)
    if odd or any(text.count(left) > text.count(right) for left, right in ("“”", "«»")):
        raise _Invalid("the last line may be a quotation: a quote above it is not closed")
    above = ""
    for line in reversed(lines[-LOOK_BACK:]):
        above = line.strip()
        if not above:
            continue
        try:
            other = _from_json(above, graded) if above.startswith("{") else _from_line(above, graded)
        except _Invalid:
            if len(above.split(maxsplit=2)) > 1 or _COLON.search(above):
                break
            continue  # "or", "---"
        if other != score:
            raise _Invalid(f"two scores side by side: {other:g} and {score:g}")
    if _COLON.search(above) and not (len(above) <= MAX_LINE and _HEADING.fullmatch(above)):
        raise _Invalid(f"the last line may be a quotation: {_brief(above)} stands above it")


def _brief(text: str) -> str:
    return repr(text if len(text) <= 60 else f"…{text[-60:]}")
