"""What comes back, as a turn in the protocol's grammar, so that environments read it as they read any other.

The provider says apart what the grammar says in tags: thinking, calls, and in a native conversation the answer. Each is written
down as it is; a call's arguments may be no JSON, and then the turn is malformed, which is for the environment to see.
"""

from __future__ import annotations

import json
import re
from typing import Any

from agentvision.chat import Reply

_TAGS = re.compile(r"</?(?:think|tool_call|answer)>")


def turn_text(reply: Reply, *, native: bool) -> str:
    """The turn's text. Of several calls it holds the first: an environment carries out one a turn."""
    said = reply.text.strip()
    if reply.calls:
        call = reply.calls[0]
        words = f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments.strip() or "{}"}}}'
        return f"{_think(reply.reasoning, said)}\n<tool_call>{words}</tool_call>"
    tagged = _TAGS.search(said) is not None
    if native and not tagged:
        return f"{_think(reply.reasoning)}\n<answer>{said}</answer>"
    if tagged and reply.reasoning and not said.startswith("<think>"):
        return f"{_think(reply.reasoning)}\n{said}"
    return reply.text


def native_call(reply: Reply) -> dict[str, Any]:
    """The message to send back for a reply with calls: its first, with all that the provider put into it (some sign what the
    model thought, and refuse a call without)."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    message["tool_calls"] = [dict(reply.calls[0].raw)]
    if reply.thinking:
        message["thinking_blocks"] = [dict(block) for block in reply.thinking]
    return message


def _think(*parts: str) -> str:
    """Thinking in its tags. Tags that it mentions are no tags: it was not written in the grammar."""
    text = "\n".join(part.strip() for part in parts if part.strip())
    return f"<think>{_TAGS.sub(lambda tag: tag[0].replace('<', '‹').replace('>', '›'), text)}</think>"
