"""Checks for authors: does a tool, or an environment, keep its contract? For use in their tests.

Each check runs what it is given on small pictures made here, and raises one `PluginError` that lists every problem.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from agentvision._workers import run_sync
from agentvision.compute import VisionSpec
from agentvision.env import Environment
from agentvision.errors import PluginError
from agentvision.images import ImageStore, image_hash
from agentvision.tool import Tool, ToolContext, ToolOutcome, call_tool
from agentvision.types import Message, Observation, Sample, StepResult, ToolCall, ToolError
from agentvision.views import first_view

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MAX_STEPS = 256
_TURNS = (
    "",
    "neither a call nor an answer",
    "<think>",
    '<think>.</think><tool_call>{"name": "no such tool", "arguments": {}}</tool_call>',
    "<think>.</think><answer>42</answer>",
)


def check_tool(tool: Tool, arguments: Mapping[str, Any] | None = None) -> None:
    """Raise `PluginError` unless the tool keeps its contract.

    Its schema is plain JSON and describes every argument; a call with `arguments` (by default made up from the schema)
    succeeds within its deadline, says the same twice for the same seed (a pure tool: for any), and leaves the pictures it was
    shown as they were; a missing image and an unknown argument are answered without a crash.
    """
    problems: list[str] = []
    if not _NAME.fullmatch(tool.name):
        problems.append(f"its name {tool.name!r} is not letters, digits, '_' and '-', at most 64 of them")
    try:
        if json.loads(json.dumps(tool.schema)) != tool.schema:
            problems.append("its schema changes when it is written as JSON")
    except (TypeError, ValueError) as error:
        problems.append(f"its schema is not JSON: {error}")
    parameters = tool.arguments.schema["properties"]
    for name, described in parameters.items():
        if not described.get("description"):
            problems.append(f"its argument {name!r} is not described; add it to the docstring's 'Args:'")
    wanted = dict(arguments) if arguments is not None else _made_up(tool.arguments.schema)

    made, ctx = {tool.name: replace(tool, pure=False)}, _context()  # a pure tool would not be called again
    before = {key: image_hash(ctx.store.get(key)) for key in (view.image for view in ctx.views.values())}
    first = run_sync(partial(call_tool, made, ToolCall(tool.name, wanted), ctx))
    if first.result is None:
        detail = first.record.detail.strip()
        problems.append(f"a call with {wanted!r} failed: {first.record.text}{f' {detail}' if detail else ''}")
    else:
        if not first.result.text and not first.result.images:
            problems.append(f"a call with {wanted!r} gave neither text nor an image")
        again = run_sync(partial(call_tool, made, ToolCall(tool.name, wanted), ctx))
        if _said(first) != _said(again):
            fix = "a pure tool draws nothing: leave pure out" if tool.pure else "draw from ctx.seed alone"
            problems.append(f"two calls with the same arguments and seed differ; {fix}")
        elif tool.pure:
            other = run_sync(partial(call_tool, made, ToolCall(tool.name, wanted), replace(ctx, seed=ctx.seed + 1)))
            if _said(first) != _said(other):
                problems.append("it is pure, and two calls with other seeds differ; leave pure out, or the drawing")
    if any(image_hash(ctx.store.get(key)) != value for key, value in before.items()):
        problems.append("it changed the pixels of the store; draw on what ctx.image gives, which is a copy")

    bare = ToolContext({}, ctx.store, ctx.vision)
    strange = {**wanted, "no_such_argument": 1}
    for call, where in ((ToolCall(tool.name, wanted), bare), (ToolCall(tool.name, strange), ctx)):
        record = run_sync(partial(call_tool, made, call, where)).record
        if record.error in (ToolError.CRASHED, ToolError.DEADLINE):
            shown = "without any image" if where is bare else f"with {strange!r}"
            problems.append(f"called {shown} it crashed; raise ToolRetry or ToolFailure: {record.detail.strip()}")
    _report(f"tool {tool.name!r}", problems)


def check_env(env: Environment, sample: Sample, *, turns: Sequence[str] = _TURNS) -> None:
    """Raise `PluginError` unless the environment keeps its contract on this sample.

    An episode that begins twice with one seed begins the same; messages show only views that were announced, whose
    indices count from 1; each of `turns`, said again and again, ends in a `StopReason`; only the last step has no
    observation; closing twice is harmless.
    """
    problems: list[str] = []

    async def episode(text: str) -> None:
        opening = await env.reset(sample, seed=0)
        shown = _announced(opening, 0, problems)
        for _ in range(_MAX_STEPS):
            result = await env.step(Message("assistant", (text,)))
            if not isinstance(result, StepResult):
                problems.append(f"step() returned {type(result).__name__}, not StepResult")
                return
            if result.turn.text != text:
                problems.append(f"step() recorded the turn {result.turn.text!r} for {text!r}")
            if (result.stop is None) == (result.observation is None):
                problems.append(f"after {text!r}: a step has an observation exactly when it has no stop")
                return
            if result.observation is None:
                return
            shown = _announced(result.observation, shown, problems)
        problems.append(f"{text!r} said {_MAX_STEPS} times did not end the episode")

    async def everything() -> None:
        if not isinstance(env, Environment):
            problems.append(f"{type(env).__name__} lacks one of reset, step, close")
            return
        if await env.reset(sample, seed=0) != await env.reset(sample, seed=0):
            problems.append("reset() with the same sample and seed gave two different observations")
        for text in turns:
            await episode(text)
        await env.close()
        await env.close()

    try:
        run_sync(everything)
    except Exception as error:
        problems.append(f"raised {type(error).__name__}: {error}")
    _report(f"environment {type(env).__name__!r}", list(dict.fromkeys(problems)))


def _announced(observation: Observation, before: int, problems: list[str]) -> int:
    """Check an observation's views; how many views there are now."""
    indices = [view.index for view in observation.views]
    if indices != list(range(before + 1, before + 1 + len(indices))):
        problems.append(f"view indices {indices} do not count on from {before}")
    if not observation.messages:
        problems.append("an observation without messages")
    for message in observation.messages:
        if message.role == "assistant":
            problems.append("an observation speaks as the assistant")
        if any(not 1 <= index <= before + len(indices) for index in message.views):
            problems.append(f"a message shows views {message.views} that were not announced")
    return before + len(indices)


def _context() -> ToolContext:
    """Two pictures as an episode would show them: a wide one at half size, a small one in full."""
    store, vision, views = ImageStore(), VisionSpec(), {}
    for index, (size, scale) in enumerate((((640, 320), 0.5), ((120, 90), 1.0)), start=1):
        ramp = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * k).resize(size) for k in range(3)])
        shown = first_view(store, store.add(ramp), vision, scale=scale)
        views[index] = shown.entered(index, source="first_view", store=store, vision=vision)
    return ToolContext(views, store, vision, seed=7)


def _made_up(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the required arguments."""
    return {name: _value(schema["properties"][name]) for name in schema.get("required", ())}


def _value(described: Mapping[str, Any]) -> Any:
    for key in ("const", "default"):
        if key in described:
            return described[key]
    if described.get("enum"):
        return described["enum"][0]
    if "anyOf" in described:
        return _value(described["anyOf"][0])
    match described.get("type"):
        case "array":
            count = described.get("minItems", 1)
            if count == 4 and described.get("items") == {"type": "number"}:
                return [8, 8, 72, 56]  # a box inside every picture of `_context`
            return [_value(described.get("items", {"type": "string"})) for _ in range(count)]
        case "integer" | "number":
            low = described.get("minimum", described.get("exclusiveMinimum", 0))
            return max(1, low) if "maximum" not in described else min(max(1, low), described["maximum"])
        case "boolean":
            return True
        case "object":
            return _made_up({"properties": {}, **described})
    return "text"


def _said(outcome: ToolOutcome) -> object:
    if outcome.result is None:
        return outcome.record.error, outcome.record.text
    return outcome.result.text, [(image_hash(v.image), v.original, v.transform) for v in outcome.result.images]


def _report(what: str, problems: Sequence[str]) -> None:
    if problems:
        raise PluginError("\n- ".join([f"{what} breaks its contract:", *problems]))
