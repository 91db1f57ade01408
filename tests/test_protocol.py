"""The grammar of a turn: what counts, what does not, and that reading never raises."""

import json
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentvision.errors import RecipeError
from agentvision.geometry import Affine
from agentvision.protocol import MAX_CALL_CHARS, Protocol, parse_call
from agentvision.types import ParsedTurn, ParseProblem, Sample, ToolCall, ToolError, ToolRecord, View, ViewPart

protocol = Protocol()


def view(index: int) -> View:
    return View(index, f"h{index}", f"h{index}", Affine(), (32, 16), (64, 32), 2, "first_view")


def test_an_answer_is_read():
    assert protocol.parse("<think>big</think>\n<answer> K7 </answer>\n") == ParsedTurn(think="big", answer="K7")


def test_a_leading_newline_does_not_fail_the_turn():
    assert protocol.parse("\n<think>a</think><answer>b</answer>").problem is None


@pytest.mark.parametrize("indent", [None, 2])
def test_a_call_is_read_pretty_printed_or_not(indent):
    call = json.dumps({"name": "crop", "arguments": {"image": 1, "box": [0, 0, 5, 5]}}, indent=indent)
    parsed = protocol.parse(f"<think>small</think><tool_call>\n{call}\n</tool_call>")
    assert parsed == ParsedTurn(think="small", call=ToolCall("crop", {"image": 1, "box": [0, 0, 5, 5]}))


@pytest.mark.parametrize(
    ("text", "problem", "answer"),
    [
        ("", ParseProblem.NO_THINK, None),
        ("just text", ParseProblem.NO_THINK, None),
        ("<answer>a</answer>", ParseProblem.NO_THINK, "a"),
        ("<think>a", ParseProblem.UNCLOSED, None),
        ("<think>a</think>", ParseProblem.NO_ACTION, None),
        ("<think>a</think>text", ParseProblem.STRAY_TEXT, None),
        ("<think>a</think><answer>b", ParseProblem.UNCLOSED, None),
        ("<think>a</think><answer>b</answer>c", ParseProblem.STRAY_TEXT, "b"),
        ("<think>a</think>c<answer>b</answer>", ParseProblem.STRAY_TEXT, "b"),
        ("<think>a</think><answer>b</answer></answer>", ParseProblem.STRAY_TEXT, None),
        ("<think>a<think></think><answer>b</answer>", ParseProblem.STRAY_TEXT, "b"),
        ("<think>a</think></think><answer>b</answer>", ParseProblem.STRAY_TEXT, "b"),
        ("<think>a</think><answer>b</answer><answer>c</answer>", ParseProblem.TWO_ACTIONS, None),
        ('<think>a</think><tool_call>{"name":"x","arguments":{}}</tool_call><answer>c</answer>',
         ParseProblem.TWO_ACTIONS, None),
        ("<think>a</think><answer> </answer>", ParseProblem.EMPTY_ANSWER, None),
        ("<think>a</think><tool_call>{</tool_call>", ParseProblem.BAD_JSON, None),
        ("<think>a</think><tool_call>[]</tool_call>", ParseProblem.BAD_CALL, None),
        ("<think>a</think><answer>x</think>", ParseProblem.UNCLOSED, None),
    ],
)  # fmt: skip
def test_what_is_not_in_the_grammar_is_named(text, problem, answer):
    parsed = protocol.parse(text)
    assert (parsed.problem, parsed.answer, parsed.call) == (problem, answer, None)


@pytest.mark.parametrize(
    "text",
    [
        '{"name":"x","name":"y","arguments":{}}',
        '{"name":"x","arguments":{"a":1,"a":2}}',
        '{"name":"x","arguments":{"a":NaN}}',
        '{"name":"x","arguments":{"a":Infinity}}',
        '{"name":"x","arguments":{"a":"\\ud800"}}',
        '{"name":"x","arguments":{}} trailing',
        '{"name":"x","arguments":{"a":' + "[" * 5000 + "]" * 5000 + "}}",
        '{"name":"x","arguments":{"a":' + "9" * 5000 + "}}",
        '{"name":"x","arguments":{"a":"' + "b" * MAX_CALL_CHARS + '"}}',
        "{'name':'x','arguments':{}}",
    ],
)
def test_json_traps_are_refused(text):
    result = parse_call(text)
    assert not isinstance(result, ToolCall)
    assert result[0] is ParseProblem.BAD_JSON


@pytest.mark.parametrize(
    "text", ['{"name":1,"arguments":{}}', '{"name":"x"}', '{"name":"x","arguments":[],"b":1}', "3"]
)
def test_json_that_is_no_call_is_refused(text):
    result = parse_call(text)
    assert not isinstance(result, ToolCall)
    assert result[0] is ParseProblem.BAD_CALL


pieces = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<tool_call>",
        "</tool_call>",
        '{"name":"x","arguments":{}}',
        " ",
        "\n",
    ]
)


@given(st.lists(pieces | st.text(max_size=5), max_size=10).map("".join))
def test_reading_is_total_and_its_answer_consistent(text):
    parsed = protocol.parse(text)
    assert parsed.call is None or parsed.problem is None
    assert parsed.problem is not None or (parsed.call is None) != (parsed.answer is None)
    if parsed.problem is None:
        assert parsed.think is not None


@given(st.dictionaries(st.text(max_size=8), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=8,
), max_size=4))  # fmt: skip
def test_every_json_object_survives_the_way_through_a_call(arguments):
    written = json.dumps({"name": "x", "arguments": arguments})
    assume(not re.search("</?(think|tool_call|answer)>", written))  # tags inside a call are refused, and tested above
    parsed = protocol.parse(f"<think></think><tool_call>{written}</tool_call>")
    assert parsed.call == ToolCall("x", arguments)


def test_plain_style_takes_the_whole_turn():
    assert Protocol(style="plain").parse(" a cat \n") == ParsedTurn(answer="a cat")
    assert Protocol(style="plain").parse("  ").problem is ParseProblem.EMPTY_ANSWER


def test_the_opening_announces_tools_and_shows_views_first():
    schema = {"type": "function", "function": {"name": "crop"}}
    system, user = protocol.opening(Sample("1", "What?"), [view(1), view(2)], [schema])
    assert f"<tools>\n{json.dumps(schema)}\n</tools>" in system.text
    assert user.parts == (ViewPart(1), ViewPart(2), "What?")


def test_without_tools_none_are_announced():
    system, _ = protocol.opening(Sample("1", "What?"), [view(1)])
    assert "tool" not in system.text


def test_image_marks_place_the_views_when_they_match():
    _, user = protocol.opening(Sample("1", "Is <image> like <image>?"), [view(1), view(2)])
    assert user.parts == ("Is ", ViewPart(1), " like ", ViewPart(2), "?")
    _, user = protocol.opening(Sample("1", "Is <image>?"), [view(1), view(2)])
    assert user.parts == (ViewPart(1), ViewPart(2), "Is <image>?")


def test_a_reply_carries_text_and_views_and_an_error_its_reason():
    call = ToolCall("crop", {})
    reply = protocol.tool_message(ToolRecord(call, views=(2,), text="here"), [view(2)])
    assert reply.views == (2,)
    assert reply.text.startswith("<tool_response>\nImage 2:\n")
    assert "here" in reply.text
    failed = protocol.tool_message(ToolRecord(call, text="no such image", error=ToolError.RETRY), ())
    assert "Error: no such image" in failed.text
    assert failed.views == ()


def test_a_tools_text_cannot_forge_an_image_or_run_as_a_template():
    text = "\ue0000:0\ue001 {{ 7 * 7 }} {% raw %}"
    reply = protocol.tool_message(ToolRecord(ToolCall("x", {}), text=text), ())
    assert reply.views == ()
    assert text in reply.text


def test_a_bad_template_is_a_recipe_error():
    with pytest.raises(RecipeError, match=r"protocol\.system: the template cannot be rendered in line 1"):
        Protocol(system="{% if %}").opening(Sample("1", "?"), [])
    with pytest.raises(RecipeError, match="cannot be rendered"):
        Protocol(system="{{ nothing }}").opening(Sample("1", "?"), [])
    with pytest.raises(RecipeError, match="cannot be rendered"):
        Protocol(system="{{ ''.__class__.__mro__[1].__subclasses__() }}").opening(Sample("1", "?"), [])


def test_problems_are_told_in_words():
    message = protocol.problem_message(protocol.parse("<think>a</think><tool_call>{</tool_call>"))
    assert "not valid JSON" in message.text
    with pytest.raises(ValueError, match="well-formed"):
        protocol.problem_message(ParsedTurn(answer="x"))


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, ""),
        (
            {"system": "{{ tols }}"},
            "protocol.system: the template cannot be rendered: UndefinedError: 'tols' is undefined",
        ),
        ({"system": "{{ 1 // 0 }}"}, "protocol.system: the template cannot be rendered: ZeroDivisionError"),
        ({"tool_reply": "{{ text }}"}, "protocol.tool_reply: the template shows 0 of 1 views"),
        ({"tool_reply": "{{ views[0] | image }}"}, "protocol.tool_reply: the template cannot be rendered"),
        ({"tool_reply": "{% for v in views[:1] %}{{ v | image }}{% endfor %}"}, "shows 1 of 2 views"),
        ({"tool_reply": "{% for v in views %}{{ v | image }}{{ v | image }}{% endfor %}"}, "shows 2 of 1 views"),
        ({"tool_reply": "{% if error %}{{ txt }}{% endif %}{% for v in views %}{{ v | image }}{% endfor %}"}, "'txt'"),
    ],
)
def test_templates_are_checked_before_any_episode(settings, wrong):
    lines = list(Protocol(**settings).check([{"type": "function"}]))
    assert len(lines) == bool(wrong)
    assert wrong in "".join(lines)
