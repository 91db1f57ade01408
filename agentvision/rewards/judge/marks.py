"""What in a text is not content: invisible characters, terminal escapes, and the control tokens of chat models.

`visible` drops what nobody can see, so that nothing hides inside a word; `defuse` then makes the tokens and tags that a model
or this program would obey into plain text that looks like them (`<|im_start|>` becomes `‹|im_start|›`). Nothing visible is
removed, so removing cannot put a new token together.
"""

from __future__ import annotations

import re
import unicodedata

MAX_ANSWER_CHARS = 4000
"""No more of an answer is read, by the prefilter or by the judge."""

_ESCAPE = re.compile("\x1b(?:\\[[0-9;:<=>?]{0,40}[ -/]{0,4}[@-~]|\\][^\x07\x1b]{0,200}(?:\x07|\x1b\\\\)|[@-_])?")
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Blank letters and marks that Unicode does not file under "format": fillers, the empty Braille cell, variation selectors.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_HIDDEN = ("Cc", "Cf", "Cn", "Co")

_ROLES = "system|user|assistant|human|ai|model|tool|developer|bot"
_TAGS = (
    f"{_ROLES}|s|bos|eos|pad|unk|image|img|video|audio|think|thinking|thought|reasoning|answer|prediction|question|truth|score|"
    "tool_call|tool_response|tools|function_call|start_of_turn|end_of_turn|start_of_image|end_of_image|image_soft_token|"
    "begin_of_text|end_of_text|end_of_utterance"
)
CONTROL = re.compile(
    r"[<＜][|｜](?P<token>[^<>＜＞|｜\n]{0,64})[|｜][>＞]"
    rf"|[<＜](?P<tag>/?(?:{_TAGS})(?:[ \t][^<>＜＞\n]{{0,200}})?/?)[>＞]"
    r"|\[(?P<bracket>/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|THINK|IMG|IMG_BREAK|IMG_END))\]"
    r"|<<(?P<sys>/?SYS)>>"
    rf"|^(?P<role>[ \t#*]{{0,9}}(?:{_ROLES}|instruction|response|input)[*]{{0,2}}:)(?=\s|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
"""Control tokens, tags and role headers, as they stand in `visible` text."""


def visible(text: str) -> str:
    """Without escapes and characters that are not seen; one kind of line end; what is no character at all as `\ufffd`."""
    text = _LINE_END.sub("\n", _ESCAPE.sub("", text))
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_seen, _BLANK.sub("", text)))


def defuse(text: str) -> str:
    """The same text, with everything that might be obeyed as a token, a tag or a role made plain text."""
    return CONTROL.sub(_plain, text)


def _seen(character: str) -> str:
    if character in "\n\t":
        return character
    category = unicodedata.category(character)
    if category == "Cs":  # half of a surrogate pair, which no encoding can carry
        return "\ufffd"
    return "" if category in _HIDDEN else character


def _plain(found: re.Match[str]) -> str:
    if found["token"] is not None:
        return f"‹|{found['token']}|›"
    return f"‹{(found['tag'] or found['bracket'] or found['sys'] or found['role']).strip()}›"
