"""The grammar of a turn, and the texts that frame it.

A turn is `<think>…</think>` and then exactly one of `<tool_call>{"name": …, "arguments": {…}}</tool_call>` and
`<answer>…</answer>`; white space between the parts is free, anything else is a problem. Parsing is strict (no repair, no
regular expression over JSON): what is repaired in training is paid for. `style: plain` is the grammar of an untuned model:
the whole turn is the answer, there are no tools. Texts are jinja templates beside this file, rendered in a sandbox; views
are placed by marks that no content can forge, since each rendering draws its own.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, TypeAlias

from jinja2 import StrictUndefined, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agentvision._strict_json import strict_json
from agentvision.errors import RecipeError
from agentvision.geometry import Affine, Size
from agentvision.types import (
    Message,
    ParsedTurn,
    ParseProblem,
    Part,
    Role,
    Sample,
    ToolCall,
    ToolRecord,
    View,
    ViewPart,
)

Style: TypeAlias = Literal["think", "plain"]

MAX_CALL_CHARS = 20_000
"""A tool call's JSON may not be longer."""

IMAGE_MARK = "<image>"
"""In a question: where its images stand, if it is there once an image. Otherwise they come first."""

_TAG = re.compile("</?(?:think|tool_call|answer)>")


@dataclass(frozen=True, slots=True)
class Protocol:
    """How turns are framed and read. `system` and `tool_reply` are jinja sources; None takes the templates shipped here.

    `system` sees `tools` (a list of JSON schemas); `tool_reply` sees `text`, `error` (bool), `views` and the filter
    `image`, which puts a view in its place. Both see `native`: the policy's provider has means of its own for tools, and what
    the model says by them is written as a turn for it, so prompts describe neither tools nor tags.
    """

    style: Style = "think"
    system: str | None = None
    tool_reply: str | None = None
    native: bool = False

    # --- what the model reads ---------------------------------------------------------------------------------------

    def opening(
        self, sample: Sample, views: Sequence[View], tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[Message, ...]:
        """The first messages: a system turn (think style) and the user's, with the first views and the question."""
        user = Message("user", _question_parts(sample.question, views))
        if self.system is None and self.style == "plain":
            return (user,)
        source = _shipped("system") if self.system is None else self.system
        return _system(source, tuple(json.dumps(tool) for tool in tools), self.native), user

    def tool_message(self, record: ToolRecord, views: Sequence[View]) -> Message:
        """The user turn that carries a tool's reply: its text and new views, or the error that the model should know."""
        return self._reply(record.text, views, error=not record.ok)

    def problem_message(self, parsed: ParsedTurn) -> Message:
        """The user turn that tells the model why its turn could not be read."""
        if parsed.problem is None:
            raise ValueError("a well-formed turn has no problem to tell")
        detail = f" ({parsed.detail})" if parsed.detail else ""
        return self._reply(_PROBLEM_TEXTS[parsed.problem] + detail, (), error=True)

    def _reply(self, text: str, views: Sequence[View], *, error: bool) -> Message:
        source = _shipped("tool") if self.tool_reply is None else self.tool_reply
        return _told(source, text, error, tuple((view.index, view.size) for view in views), self.native)

    def check(self, tools: Sequence[Mapping[str, Any]] = ()) -> Iterator[str]:
        """`setting: what` for each template that cannot be rendered, or that leaves out a view that it is given."""
        view = View(1, "", "", Affine(), (28, 28), (28, 28), tokens=1, source="check")
        shown = (view, replace(view, index=2))
        try:
            self.opening(Sample(id="check", question="?"), (), tools)
        except RecipeError as error:
            yield str(error)
        try:
            for views, error in (((), False), ((), True), (shown[:1], False), (shown, False)):
                message = self._reply("a text", views, error=error)
                if sorted(message.views) != [each.index for each in views]:
                    missing = "{% for view in views %}{{ view | image }}{% endfor %}"
                    shows = f"the template shows {len(message.views)} of {len(views)} views"
                    yield f"protocol.tool_reply: {shows}; each must stand in it once: {missing}"
                    return
        except RecipeError as error:
            yield str(error)

    # --- what the model wrote ---------------------------------------------------------------------------------------

    def parse(self, text: str) -> ParsedTurn:
        """Read one turn. Total: any string gives a `ParsedTurn`, never an exception."""
        if self.style == "plain":
            answer = text.strip()
            return ParsedTurn(answer=answer) if answer else ParsedTurn(problem=ParseProblem.EMPTY_ANSWER)
        return _parse_think(text)


_PROBLEM_TEXTS = {
    ParseProblem.NO_THINK: "the turn must begin with <think>...</think>",
    ParseProblem.UNCLOSED: "a tag was opened and not closed",
    ParseProblem.NO_ACTION: "the turn holds neither a tool call nor an answer",
    ParseProblem.TWO_ACTIONS: "the turn must hold exactly one tool call or one answer",
    ParseProblem.STRAY_TEXT: "there is text outside the tags",
    ParseProblem.BAD_JSON: "the tool call is not valid JSON",
    ParseProblem.BAD_CALL: 'a tool call is {"name": "...", "arguments": {...}}',
    ParseProblem.EMPTY_ANSWER: "the answer is empty",
}


def _parse_think(text: str) -> ParsedTurn:
    body = text.strip()

    def problem(kind: ParseProblem, detail: str = "", think: str | None = None) -> ParsedTurn:
        return ParsedTurn(think=think, answer=_only_answer(body), problem=kind, detail=detail)

    if not body.startswith("<think>"):
        return problem(ParseProblem.NO_THINK)
    think, closed, rest = body.removeprefix("<think>").partition("</think>")
    if not closed:
        return problem(ParseProblem.UNCLOSED, "<think>")
    think, rest = think.strip(), rest.strip()
    if _TAG.search(think):
        return problem(ParseProblem.STRAY_TEXT, "a tag inside <think>")
    calls, answers = rest.count("<tool_call>"), rest.count("<answer>")
    if calls + answers == 0:
        return problem(ParseProblem.STRAY_TEXT if rest else ParseProblem.NO_ACTION, think=think)
    if calls + answers > 1:
        return problem(ParseProblem.TWO_ACTIONS, think=think)
    name = "tool_call" if calls else "answer"
    if f"</{name}>" not in rest:
        return problem(ParseProblem.UNCLOSED, f"<{name}>", think)
    inner = rest.removeprefix(f"<{name}>").removesuffix(f"</{name}>")
    if rest != f"<{name}>{inner}</{name}>" or _TAG.search(inner):
        return problem(ParseProblem.STRAY_TEXT, think=think)
    if name == "answer":
        inner = inner.strip()
        if not inner:
            return problem(ParseProblem.EMPTY_ANSWER, think=think)
        return ParsedTurn(think=think, answer=inner)
    call = parse_call(inner)
    return ParsedTurn(think=think, call=call) if isinstance(call, ToolCall) else problem(call[0], call[1], think)


def _only_answer(body: str) -> str | None:
    """The text of the one answer in a turn that calls no tool, however malformed the rest is; else None."""
    if body.count("<answer>") != 1 or body.count("</answer>") != 1 or "<tool_call>" in body:
        return None
    return body.partition("<answer>")[2].partition("</answer>")[0].strip() or None


def parse_call(text: str) -> ToolCall | tuple[ParseProblem, str]:
    """Read a tool call's JSON strictly: no duplicate keys, no NaN, no lone surrogates, no depth that breaks the parser."""
    if len(text) > MAX_CALL_CHARS:
        return ParseProblem.BAD_JSON, f"longer than {MAX_CALL_CHARS} characters"
    try:
        value = strict_json(text)
        text.encode()
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        return ParseProblem.BAD_JSON, "nested too deeply"
    except UnicodeEncodeError:
        return ParseProblem.BAD_JSON, "a lone surrogate"
    except ValueError as error:
        return ParseProblem.BAD_JSON, str(error)[:200]
    if (
        not isinstance(value, dict)
        or set(value) != {"name", "arguments"}
        or not isinstance(value["name"], str)
        or not isinstance(value["arguments"], dict)
    ):
        return ParseProblem.BAD_CALL, ""
    return ToolCall(value["name"], value["arguments"])


# --- rendering ------------------------------------------------------------------------------------------------------


def _question_parts(question: str, views: Sequence[View]) -> tuple[Part, ...]:
    pieces = question.split(IMAGE_MARK)
    if views and len(pieces) - 1 == len(views):
        parts: list[Part] = [pieces[0]]
        for view, piece in zip(views, pieces[1:], strict=True):
            parts += [ViewPart(view.index), piece]
    else:
        parts = [*(ViewPart(view.index) for view in views), question]
    return tuple(part for part in parts if part != "")


@lru_cache
def _shipped(name: str) -> str:
    return files("agentvision").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")


@lru_cache(maxsize=64)
def _template(source: str) -> Any:
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    env.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    env.filters["image"] = lambda view: view["mark"]
    return env.from_string(source)


_SEES = {
    "system": "tools, native, and the filter json",
    "tool_reply": "text, error, views, native, and the filter image",
}


@lru_cache(maxsize=64)
def _system(source: str, tools: tuple[str, ...], native: bool) -> Message:
    """The system turn of the tools whose schemas, as JSON, these are: rendered once, not in every episode."""
    return _render("system", "system", source, (), tools=[json.loads(tool) for tool in tools], native=native)


@lru_cache(maxsize=1024)
def _told(source: str, text: str, error: bool, views: tuple[tuple[int, Size], ...], native: bool) -> Message:
    """A tool's reply: the rollouts of a group, and many others, are told the same."""
    return _render("tool_reply", "user", source, views, text=text, error=error, native=native)


def _render(setting: str, role: Role, source: str, views: Sequence[tuple[int, Size]], **values: Any) -> Message:
    """Render a template that shows views (index, size). Each view's mark holds a fresh random number, so that no text
    can stand for an image."""
    nonce = secrets.token_hex(8)
    shown = [
        {"index": index, "width": width, "height": height, "mark": f"\ue000{nonce}:{index}\ue001"}
        for index, (width, height) in views
    ]
    try:
        text = _template(source).render(views=shown, **values).strip()
    except Exception as error:  # a template may divide by zero as well as misspell a name
        line = f" in line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise RecipeError(
            f"protocol.{setting}: the template cannot be rendered{line}: {type(error).__name__}: {error} "
            f"(it sees {_SEES[setting]})"
        ) from None
    head, *marked = text.split(f"\ue000{nonce}:")
    parts: list[Part] = [head]
    for piece in marked:
        index, _, rest = piece.partition("\ue001")
        parts += [ViewPart(int(index)), rest]
    return Message(role, tuple(part for part in parts if part != ""))
