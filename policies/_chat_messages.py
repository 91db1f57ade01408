"""What is sent: a conversation as the OpenAI protocol has it.

In text, messages go as they are. Natively, a turn that is a tool call becomes a call of the protocol, and the message after it
the tool's reply. Replies hold text alone there, so the pictures of one follow in a user's message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from agentvision.protocol import Protocol
from agentvision.types import Message, ParsedTurn, ViewPart

_GRAMMAR = Protocol()
_EMPTY = "(empty)"
"""Sent for a turn that says nothing, since some providers take no empty message."""


def to_wire(
    messages: Sequence[Message],
    images: Mapping[int, Mapping[str, Any]],
    *,
    native: bool,
    calls: Mapping[tuple[int, str], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The messages to send. `images` are the parts for each view, by its index.

    `calls` are the provider's own messages of earlier calls, by the turn's place among the messages and its text (a model may say
    the same twice, and each call has an id of its own); another like it is made where one is not there.
    """
    wire: list[dict[str, Any]] = []
    called: str | None = None  # the id of the call that the next message replies to
    for place, message in enumerate(messages):
        if message.role == "assistant":
            parsed = _GRAMMAR.parse(message.text) if native else ParsedTurn()
            if parsed.call is None:
                wire.append({"role": "assistant", "content": message.text or _EMPTY})
            else:
                said = dict(calls.get((place, message.text)) or _call_message(parsed, place))
                called = said["tool_calls"][0]["id"]
                wire.append(said)
        elif called is not None:
            wire += _tool_reply(message, images, called)
            called = None
        else:
            wire.append({"role": message.role, "content": _content(message, images)})
    return wire


def _content(message: Message, images: Mapping[int, Mapping[str, Any]]) -> str | list[dict[str, Any]]:
    if not message.views:
        return message.text
    return [
        dict(images[part.view]) if isinstance(part, ViewPart) else {"type": "text", "text": part}
        for part in message.parts
    ]


def _call_message(parsed: ParsedTurn, place: int) -> dict[str, Any]:
    """A call as the provider would have said it; ids are nine letters and digits, which all of them take."""
    assert parsed.call is not None
    function = {"name": parsed.call.name, "arguments": json.dumps(parsed.call.arguments, ensure_ascii=False)}
    call = {"id": f"call{place:05d}", "type": "function", "function": function}
    return {"role": "assistant", "content": parsed.think or None, "tool_calls": [call]}


def _tool_reply(message: Message, images: Mapping[int, Mapping[str, Any]], called: str) -> list[dict[str, Any]]:
    """The reply's text, and its pictures in a message after it."""
    text = "".join(part if isinstance(part, str) else f"(image {part.view} follows)" for part in message.parts)
    reply: list[dict[str, Any]] = [{"role": "tool", "tool_call_id": called, "content": text}]
    if message.views:
        shown: list[dict[str, Any]] = []
        for index in message.views:
            shown += [{"type": "text", "text": f"Image {index}:"}, dict(images[index])]
        reply.append({"role": "user", "content": shown})
    return reply
