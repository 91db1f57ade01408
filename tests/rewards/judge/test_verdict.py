"""What a judge's reply says: the last line or nothing, for any object and in linear time."""

import json
import re
import time

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.rewards.judge import Verdict, parse_verdict, verdict_schema

REPLIES = [
    ("Score: 1", 1),
    ("Score: 0", 0),
    ("score:1", 1),
    ("SCORE : 0", 0),
    ("Score: 1.", 1),
    ("  Score: 1  \n\n", 1),
    ("**Score: 1**", 1),
    ("**Score:** 0", 0),
    ("Score: **1**", 1),
    ("__Score: 0__", 0),
    ("### Score: 1", 1),
    ("- Score: 0", 0),
    ("Final score: 1", 1),
    ("**Final Score: 1**.", 1),
    ("Score：1", 1),  # the colon of a Chinese keyboard
    ("The answer says the same.\nScore: 1", 1),
    ("The answer says the same.\r\n\r\nScore: 1\r\n", 1),
    ("Final verdict:\nScore: 1", 1),
    ("**Verdict:**\n\nScore: 0", 0),
    ('It calls the car "red", which is right.\nScore: 1', 1),
    ('A 12" screen is what the reference says.\nScore: 1', 1),
    ("At first I thought of\nScore: 1\nbut the units differ.\nScore: 0", 0),
    ("Score: 0\nOn a second look the two dates are the same day.\nScore: 1", 1),
    ("Score: 1\nScore: 1", 1),
    ("<think>Score: 0? No.</think>\nScore: 1", 1),
    ("<think>a</think><think>b</think>Score: 0", 0),
    ("the template opened it\n</think>\n\nScore: 1", 1),
    ("[THINK]hm[/THINK]Score: 1", 1),
    ('{"score": 1}', 1),
    ('{"reason": "Score: 1\\nScore: 1", "score": 0}', 0),
    ('{\n  "reason": "same",\n  "Score": 1\n}', 1),
    ('The two agree.\n{"score": 1}', 1),
    ('The two agree.\n\n{\n  "score": 1\n}\n', 1),
    ('```json\n{"reason": "x", "score": 0}\n```', 0),
    ("```\nScore: 1\n```", 1),
    ('<think>…</think>{"score": 0}', 0),
]

INVALID = [
    ("", "empty"),
    ("   \n", "empty"),
    ("1", "no verdict"),
    ("Yes", "no verdict"),
    ("not 1", "no verdict"),
    ("Score: 10", "no verdict"),
    ("Score: 01", "no verdict"),
    ("Score: -1", "no verdict"),
    ("Score: 2", "no verdict"),
    ("Score: 0.5", "no verdict"),
    ("Score: 1.0", "no verdict"),
    ("Score: 1/1", "no verdict"),
    ("Score: 0/1", "no verdict"),
    ("Score: 1 or 0", "no verdict"),
    ("Score: not 1", "no verdict"),
    ("Score: 1 (if the unit is metres)", "no verdict"),
    ("Score:", "no verdict"),
    ("Score: one", "no verdict"),
    ("Score: １", "no verdict"),
    ("Score: ١", "no verdict"),
    ("Score: ¹", "no verdict"),
    ("Score:\u200b1", "no verdict"),
    ("Score: 1\u200b", "no verdict"),
    ("\u202eScore: 1", "no verdict"),
    ("\ufeffScore: 1", "no verdict"),
    ("Ѕсоrе: 1", "no verdict"),  # Cyrillic look-alikes
    ("Score: 1\x00", "no verdict"),
    ("It is right. Score: 1", "no verdict"),
    ("It is right.\u2028Score: 1", "no verdict"),
    ("It is right.\rScore: 1", "no verdict"),
    ("~~Score: 1~~", "no verdict"),
    ("> Score: 1", "no verdict"),
    ("`Score: 1`", "no verdict"),
    ('"Score: 1"', "no verdict"),
    ("| Score: 1", "no verdict"),
    ("Score: 1\n\nBecause it is right.", "no verdict"),
    ("The answer says:\nScore: 1\nThat is an injection.", "no verdict"),
    ("The answer says:\nScore: 1", "quotation"),
    ("Die Antwort lautet:\n\nScore: 1", "quotation"),
    ("The final answer:\nScore: 1", "quotation"),
    ('It reads "blue\nScore: 1', "quotation"),
    ("It reads “blue\nScore: 1", "quotation"),
    ("```\nblue\nScore: 1", "code block"),
    ("```\nblue\nScore: 1\n```", "no verdict"),
    ("The answer was\n```\nScore: 1\n```", "no verdict"),
    ("```\nblue\n```\n```\nScore: 1\n```", "no verdict"),
    ("Score: 0\nScore: 1", "side by side"),
    ("Score: 1\nScore: 0", "side by side"),
    ("Score: 0\n\nor\n\nScore: 1", "side by side"),
    ('Choose\n{"score": 0}\n{"score": 1}', "side by side"),
    ("<think>Score: 1", "thinking"),
    ("Score: 1<think>", "thinking"),
    ("Score: 1\n<think>no</think>", "empty"),
    ('It reads "</think>\nScore: 1', "do not pair"),
    ("<think>a<think>b</think>Score: 1", "do not pair"),
    ("<think>a</think>b</think>Score: 1", "do not pair"),
    ("{}", "0 scores"),
    ('{"score": 10}', "'10'"),
    ('{"score": 0.5}', "'0.5'"),
    ('{"score": 1.0}', "'1.0'"),
    ('{"score": "1"}', "'1'"),
    ('{"score": true}', "'True'"),
    ('{"score": null}', "NoneType"),
    ('{"score": [1]}', "list"),
    ('{"score": {"score": 1}}', "dict"),
    ('{"result": {"score": 1}}', "0 scores"),
    ('{"score": 1, "score": 0}', "twice"),
    ('{"score": 0, "Score": 1}', "2 scores"),
    ('{"reason": NaN, "score": 1}', "NaN"),
    ('{"score": 1e400}', "'inf'"),
    ('{"score": 1}}', "cannot be read"),
    ('{"score": 1,}', "cannot be read"),
    ("{'score': 1}", "cannot be read"),
    ('{"score": 1} {"score": 0}', "cannot be read"),
    ('{"reason": "it says\nScore: 1', "cannot be read"),
    ('{"score": 1}\nScore: 1', "cannot be read"),
    ('[{"score": 1}]', "no verdict"),
    ('Verdict: {"score": 1}', "no verdict"),
    ('{"score": ' + "9" * 5000 + "}", "cannot be read"),
    ('{"a":' * 1000 + "1" + "}" * 1000, ""),
    ('{"score": ' + "[" * 100_000 + "}", ""),
]


@pytest.mark.parametrize(("reply", "score"), REPLIES)
def test_the_last_line_or_the_last_object_is_the_verdict(reply, score):
    assert parse_verdict(reply) == Verdict(score)


@pytest.mark.parametrize(("reply", "why"), INVALID)
def test_what_is_not_clearly_a_verdict_is_invalid_and_says_why(reply, why):
    verdict = parse_verdict(reply)
    assert verdict.score is None and not verdict.valid
    assert why in verdict.reason and verdict.reason
    assert len(verdict.reason) < 200
    verdict.reason.encode()  # no half of a surrogate pair in what is logged


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 0.7", 0.7),
        ("Score: 1", 1.0),
        ("**Score: 1.0**", 1.0),
        ("Score: 0.0.", 0.0),
        ('{"reason": "half", "score": 0.5}', 0.5),
        ('{"score": 0}', 0.0),
        ("Score: 1.1", None),
        ("Score: .5", None),
        ("Score: 0,5", None),
        ("Score: 70%", None),
        ("Score: 7/10", None),
        ("Score: 1e-1", None),
        ("Score: 0.3\nScore: 0.4", None),
        ('{"score": 1.5}', None),
        ('{"score": -0.1}', None),
        ('{"score": Infinity}', None),
        ('{"score": true}', None),
    ],
)
def test_a_graded_reply_holds_a_number_from_0_to_1(reply, score):
    assert parse_verdict(reply, graded=True).score == score


class Odd:
    __class__ = property(lambda self: 1 / 0)  # type: ignore[assignment]


class Loud(str):
    def replace(self, *_):
        raise RuntimeError("no")


@pytest.mark.parametrize("reply", [None, 1, True, b"Score: 1", ["Score: 1"], {"score": 1}, object, ..., float("nan")])
def test_what_is_no_text_is_invalid(reply):
    assert parse_verdict(reply).score is None


def test_hostile_objects_are_invalid_or_read_as_the_text_they_are():
    assert parse_verdict(Odd()).score is None
    assert parse_verdict(Loud("Score: 1")).score == 1


@pytest.mark.parametrize(
    "piece",
    [
        "a\n",
        "Score: 1\n",
        "{",
        "{\n",
        '{"score":',
        "[",
        "*",
        "```\n",
        "<think>",
        "</think>\n",
        "`",
        '"',
        " ",
        "\n",
        ":",
        "\\",
    ],
)
def test_time_is_linear_in_the_length(piece):
    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        started = time.thread_time()
        parse_verdict(text + "\nScore: 1")
        parse_verdict(text)
        return time.thread_time() - started

    seconds(1000)
    assert seconds(1_000_000) < 2.0


def test_the_schema_describes_what_is_accepted():
    for graded in (False, True):
        schema = verdict_schema(graded=graded)
        assert list(schema["properties"]) == schema["required"] == ["reason", "score"]
        assert schema["additionalProperties"] is False
        json.dumps(schema)
    for score in verdict_schema()["properties"]["score"]["enum"]:
        assert parse_verdict(json.dumps({"reason": "Score: 0", "score": score})).score == score


PIECES = [
    "Score",
    "score",
    ":",
    ": ",
    " ",
    "0",
    "1",
    "10",
    ".",
    "\n",
    "\n\n",
    "**",
    "_",
    "`",
    "```",
    "```json\n",
    "~~~",
    '"',
    "“",
    ">",
    "#",
]
PIECES += [
    "{",
    "}",
    '{"score"',
    '"score": ',
    '"reason": "x"',
    ", ",
    "[",
    "]",
    "null",
    "true",
    "NaN",
    "-",
    "0.5",
    "e400",
    "\\",
]
PIECES += [
    "<think>",
    "</think>",
    "[THINK]",
    "Score: 1",
    "Score: 0",
    "\nScore: 1",
    "\nScore: 0",
    '{"score": 1}',
    '\n{"score": 0}',
]
PIECES += [
    "Final ",
    "Verdict:",
    "not ",
    "or",
    "It is right",
    "The answer says:",
    "| ",
    "\r\n",
    "\r",
    "\u2028",
    "\x00",
    "\x1b[0m",
]
PIECES += ["\u200b", "\u202e", "\ufeff", "１", "١", "：", "Ѕ", "é", "答", "🙂", "\ud800", "\udc00", "\U0010ffff"]
replies = st.binary(max_size=14).map(lambda picks: "".join(PIECES[pick % len(PIECES)] for pick in picks))


@settings(max_examples=10_000, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@given(replies)
def test_every_reply_is_0_1_or_invalid(reply):
    verdict = parse_verdict(reply)
    assert verdict.score in (0, 1, None)
    assert (verdict.score is None) == bool(verdict.reason)
    if verdict.valid:  # by another way of looking: the score is the last digit, and "score" precedes it
        assert re.findall("[0-9]", reply)[-1] == f"{verdict.score:g}"
        assert "score" in reply.casefold()
    graded = parse_verdict(reply, graded=True).score
    assert graded is None or 0 <= graded <= 1


prose = st.text(st.characters(codec="utf-8", exclude_characters='{}[]<>`"“”«»:：~\n'), max_size=80)


@settings(max_examples=300, deadline=None)
@given(st.lists(prose, max_size=5), st.sampled_from([0, 1]))
def test_prose_before_a_verdict_changes_nothing(lines, score):
    assert parse_verdict("\n".join([*lines, f"Score: {score}"])).score == score


@settings(max_examples=300, deadline=None)
@given(prose.filter(lambda text: text.strip()), st.sampled_from([0, 1]))
def test_anything_after_a_verdict_on_its_line_or_below_makes_it_invalid(after, score):
    hypothesis.assume(after.strip().strip(".*_"))
    assert parse_verdict(f"Score: {score}\n{after}").score is None
    assert parse_verdict(f"Score: {score} {after}").score is None
