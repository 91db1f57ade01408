"""What the tiny model will read besides questions: the fixed texts of its recipes, and a corpus to learn merges from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from agentvision import build
from agentvision.data.questions import LOOK
from agentvision.geometry import Affine
from agentvision.protocol import Protocol
from agentvision.recipe import load_recipe
from agentvision.tiny.reader import SceneData
from agentvision.types import Sample, ToolCall, ToolRecord, View

_SHOWN = View(2, "", "", Affine(), (160, 96), (160, 96), 60, "resize_image")


def offered_tools() -> list[dict[str, Any]]:
    """The schemas of the tools that the tiny recipes offer."""
    return [tool.schema for tool in build.build_tools(load_recipe("visionthink", profile="tiny"))]


def fixed_lines() -> list[str]:
    """The system turns with and without the tool, whole and line by line, and the pieces of a call and its reply."""
    protocol, nothing = Protocol(), Sample("", "")
    systems = [protocol.opening(nothing, (), offered)[0].text for offered in (offered_tools(), [])]
    reply = protocol.tool_message(ToolRecord(ToolCall("resize_image", {}), views=(2,)), (_SHOWN,))
    whole = [*systems, *(part for part in reply.parts if isinstance(part, str))]
    call = LOOK.removeprefix("<tool_call>").removesuffix("</tool_call>")
    return [text for text in (*whole, *(line for text in whole for line in text.split("\n")), call) if text]


def corpus(data: Sequence[SceneData], *, samples: int = 500) -> Iterator[str]:
    """Questions, thoughts and answers in words of `samples` samples of each data set, and the roles' names."""
    for source in data:
        for i in range(samples):
            sample = source[i]
            yield from ("system\nuser\nassistant\n", sample.question)
            yield from (f" {sample.meta[view]}" for view in ("sees", "clear"))
            yield str(sample.answer)
