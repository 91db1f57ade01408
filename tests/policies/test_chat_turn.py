"""Whatever a provider returns becomes a turn; what was well formed stays so, and nothing else becomes it."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from agentvision.chat import Reply, ToolUse
from agentvision.policies._chat_turn import native_call, turn_text
from agentvision.protocol import Protocol
from agentvision.types import ParseProblem, ToolCall

PARSE = Protocol().parse
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def called(name: str, arguments: str, **more: object) -> Reply:
    return Reply(more.pop("text", ""), calls=(ToolUse(name, arguments, {"id": "a"}),), **more)  # type: ignore[arg-type]


def tag_free(value: object) -> bool:
    """The grammar allows no tag inside a call, natively no more than in text."""
    text = json.dumps(value, ensure_ascii=False)
    return not any(
        tag in text for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>")
    )


@given(
    st.text(min_size=1, alphabet=st.characters(exclude_categories=["Cs"])),
    st.dictionaries(st.text(alphabet="abc\"'<>\\é"), JSON),
)
def test_a_call_is_read_back_as_it_was_made(name: str, arguments: dict[str, object]) -> None:
    text = turn_text(called(name, json.dumps(arguments)), native=True)
    if tag_free([name, arguments]):
        assert PARSE(text).call == ToolCall(name, arguments)


@given(st.text(), st.text(), st.text(), st.text(), st.booleans())
def test_any_reply_is_a_turn(name: str, arguments: str, words: str, reasoning: str, native: bool) -> None:
    PARSE(turn_text(called(name, arguments, text=words, reasoning=reasoning), native=native))
    PARSE(turn_text(Reply(words, reasoning=reasoning), native=native))


@given(st.lists(st.sampled_from(["<", ">", "x ", *TAGS]), min_size=1).map("".join))
def test_what_a_model_thinks_apart_breaks_no_turn(reasoning: str) -> None:
    for reply in (
        called("crop", "{}", reasoning=reasoning),
        called("crop", "{}", reasoning="<answer>", text=reasoning),
    ):
        assert PARSE(turn_text(reply, native=True)).call == ToolCall("crop", {})
    assert PARSE(turn_text(Reply("<answer>4</answer>", reasoning=reasoning), native=False)).problem is None


def test_arguments_that_are_no_json_make_a_malformed_turn() -> None:
    for arguments in ('{"box": [1,', "nothing", "{} </tool_call><answer>4</answer>", '{"a": NaN}', "{}, 1"):
        parsed = PARSE(turn_text(called("crop", arguments), native=True))
        assert parsed.call is None and parsed.problem in (
            ParseProblem.BAD_JSON,
            ParseProblem.STRAY_TEXT,
            ParseProblem.TWO_ACTIONS,
        )
    assert PARSE(turn_text(called("crop", "[1]"), native=True)).problem is ParseProblem.BAD_CALL
    assert PARSE(turn_text(called("crop", ""), native=True)).call == ToolCall("crop", {}), (
        "no arguments at all are none"
    )


def test_words_beside_a_call_are_thinking() -> None:
    parsed = PARSE(turn_text(called("crop", "{}", text="I will crop.", reasoning="It is small."), native=True))
    assert parsed.think == "It is small.\nI will crop." and parsed.problem is None


def test_natively_words_are_the_answer_unless_they_are_in_the_grammar() -> None:
    assert PARSE(turn_text(Reply(" 42 ", reasoning="seen"), native=True)).answer == "42"
    tagged = "<think>a</think>\n<answer>42</answer>"
    assert turn_text(Reply(tagged), native=True) == tagged
    assert PARSE(turn_text(Reply("So: <answer>42</answer>"), native=True)).problem is ParseProblem.NO_THINK
    assert PARSE(turn_text(Reply(""), native=True)).problem is ParseProblem.EMPTY_ANSWER


def test_in_text_words_stay_as_they_are() -> None:
    for words in ("", "42", " <think>a</think><answer>b</answer>\n", "<think>a", "<answer>b</answer>"):
        assert turn_text(Reply(words), native=False) == words
    assert turn_text(Reply("42", reasoning="seen"), native=False) == "42", "a plain turn is its answer"


def test_thinking_that_a_provider_cut_off_is_put_back() -> None:
    reply = Reply("<answer>b</answer>", reasoning="a")
    assert turn_text(reply, native=False) == "<think>a</think>\n<answer>b</answer>"


def test_a_call_goes_back_with_all_that_the_provider_put_into_it() -> None:
    raw = {
        "id": "x1",
        "type": "function",
        "function": {"name": "crop", "arguments": "{}"},
        "extra_content": {"sig": "abc"},
    }
    other = ToolUse("zoom", "{}", {"id": "x2"})
    reply = Reply(
        "Look.", calls=(ToolUse("crop", "{}", raw), other), thinking=({"type": "thinking", "signature": "s"},)
    )
    message = native_call(reply)
    assert message["tool_calls"] == [raw] and message["content"] == "Look."
    assert message["thinking_blocks"] == [{"type": "thinking", "signature": "s"}]
