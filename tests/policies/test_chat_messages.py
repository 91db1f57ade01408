"""What is sent for a conversation, in text and natively."""

from __future__ import annotations

from agentvision.policies._chat_messages import to_wire
from agentvision.types import Message, ViewPart

IMAGES = {1: {"type": "image_url", "image_url": {"url": "one"}}, 2: {"type": "image_url", "image_url": {"url": "two"}}}
CALL = '<think>small</think>\n<tool_call>{"name": "crop", "arguments": {"image": 1}}</tool_call>'
OPENING = (Message("system", ("Be brief.",)), Message("user", (ViewPart(1), "What is it?")))
REPLY = Message("user", ("Image 2:\n", ViewPart(2), "\nLarger."))


def test_in_text_messages_go_as_they_are() -> None:
    messages = (*OPENING, Message("assistant", (CALL,)), REPLY)
    assert to_wire(messages, IMAGES, native=False, calls={}) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [IMAGES[1], {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": CALL},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Image 2:\n"}, IMAGES[2], {"type": "text", "text": "\nLarger."}],
        },
    ]


def test_natively_a_call_and_its_reply_are_the_protocols_and_pictures_follow() -> None:
    wire = to_wire((*OPENING, Message("assistant", (CALL,)), REPLY), IMAGES, native=True, calls={})
    said, tool, shown = wire[2:]
    assert said["content"] == "small" and said["tool_calls"][0]["function"] == {
        "name": "crop",
        "arguments": '{"image": 1}',
    }
    assert (said["tool_calls"][0]["id"].isalnum(), len(said["tool_calls"][0]["id"])) == (True, 9)
    assert tool == {
        "role": "tool",
        "tool_call_id": said["tool_calls"][0]["id"],
        "content": "Image 2:\n(image 2 follows)\nLarger.",
    }
    assert shown == {"role": "user", "content": [{"type": "text", "text": "Image 2:"}, IMAGES[2]]}


def test_natively_an_error_is_the_tools_reply_and_ids_differ() -> None:
    error = Message("user", ("Error: no",))
    turn = Message("assistant", (CALL,))
    wire = to_wire((*OPENING, turn, error, turn, error), IMAGES, native=True, calls={})
    assert [message["role"] for message in wire[2:]] == ["assistant", "tool", "assistant", "tool"]
    assert wire[2]["tool_calls"][0]["id"] == wire[3]["tool_call_id"] != wire[5]["tool_call_id"]


def test_the_providers_own_call_goes_back_where_it_is_known() -> None:
    own = {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "signature": "s"}]}
    wire = to_wire((*OPENING, Message("assistant", (CALL,)), REPLY), IMAGES, native=True, calls={(2, CALL): own})
    assert wire[2] == own and wire[3]["tool_call_id"] == "x"


def test_the_same_call_made_twice_goes_back_as_the_two_that_it_was() -> None:
    first, second = ({"role": "assistant", "content": None, "tool_calls": [{"id": name}]} for name in "ab")
    turn = Message("assistant", (CALL,))
    known = {(2, CALL): first, (4, CALL): second}
    wire = to_wire((*OPENING, turn, REPLY, turn, Message("user", ("Error",))), IMAGES, native=True, calls=known)
    replies = [message["tool_call_id"] for message in wire if message["role"] == "tool"]
    assert [message for message in wire if message["role"] == "assistant"] == [first, second] and replies == ["a", "b"]


def test_natively_a_turn_that_is_no_call_stays_text_and_what_follows_it_a_users() -> None:
    broken = Message("assistant", (CALL.replace("1}}", "1"),))
    wire = to_wire((*OPENING, broken, Message("user", ("Error",))), IMAGES, native=True, calls={})
    assert wire[2] == {"role": "assistant", "content": broken.text} and wire[3] == {"role": "user", "content": "Error"}


def test_a_turn_that_says_nothing_is_no_empty_message() -> None:
    wire = to_wire((*OPENING, Message("assistant", ("",)), REPLY), IMAGES, native=False, calls={})
    assert wire[2]["content"].strip()
