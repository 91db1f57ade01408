"""Tools: typed functions that the model may call, and the one boundary through which they are called.

`@tool` reads a function's types and docstring into a JSON schema; the first parameter is the `ToolContext`, the rest
are the model's. Arguments are validated strictly (no coercion). `call_tool` gives each call a deadline off the event
loop (`_workers.py` for functions that block) and turns every outcome into a `ToolRecord`: a tool that raises, hangs or
returns rubbish is data, not a crash. Tools see views by index and never pixels in the wrong frame: `ToolContext.look`
maps a box of any view to the original and renders it once.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Annotated, Any, TypeAlias, overload

from PIL import Image
from pydantic import Field

from agentvision._callable import callable_module
from agentvision._schema import Arguments, BadArguments
from agentvision._workers import DeadlinePassed, run_async, run_blocking
from agentvision.compute import VisionSpec
from agentvision.errors import ImageError, PluginError, ToolFailure, ToolRetry, suggest
from agentvision.geometry import Box
from agentvision.images import ImageStore
from agentvision.types import ToolCall, ToolError, ToolRecord, View
from agentvision.views import NewView, onto, rendered, whole

ViewId: TypeAlias = Annotated[int, Field(ge=1)]
"""The index of a view as a tool's argument: 1 for the first picture shown."""

TIMEOUT_S = 20.0
MAX_TEXT = 16_000
"""Characters of a tool's text that the model gets at most; the rest is cut, and the text says so."""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gives back: text for the model and pictures made by `ToolContext.look` or `.show`."""

    text: str = ""
    images: tuple[NewView, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a tool may know of the episode: the views so far, and a seed of its own. Never the sample's answer."""

    views: Mapping[int, View]
    store: ImageStore
    vision: VisionSpec
    seed: int = 0

    def view(self, index: int) -> View:
        """The view of this index. Raises `ToolRetry` when there is none."""
        try:
            return self.views[index]
        except KeyError:
            known = ", ".join(map(str, sorted(self.views))) or "none"
            raise ToolRetry(f"There is no image {index}; images so far: {known}.") from None

    def image(self, index: int) -> Image.Image:
        """A copy of a view's pixels, as the model saw them; it may be drawn on."""
        return self.store.get(self.view(index).image).copy()

    def look(self, index: int, *, box: Box | None = None, scale: float = 1.0) -> NewView:
        """A region of a view, rendered from the original in one step.

        `box` is in the view's pixels and is clamped to it (None: all that the view shows). `scale` is relative to the
        original's resolution: 1 shows it in full, as far as the model's pixel budget allows. Raises `ToolRetry` for a
        box without an area inside the view, and for a region that is too long and thin to be seen.
        """
        view = self.view(index)
        region = view.box_in_original(_clamped(box, view) if box is not None else whole(view.size))
        # Mapping leaves rounding noise, which must neither move a region off the original nor defeat the cache.
        x0, x1 = (min(max(round(x, 6), 0.0), float(view.original_size[0])) for x in (region.x0, region.x1))
        y0, y1 = (min(max(round(y, 6), 0.0), float(view.original_size[1])) for y in (region.y0, region.y1))
        region = Box(x0, y0, x1, y1)
        try:
            size = self.vision.fit((max(1, round(x1 - x0)), max(1, round(y1 - y0))), scale=scale)
            return rendered(self.store, view.original, region, size)
        except ImageError as error:
            raise ToolRetry(f"That region of image {index} cannot be shown: {error}.") from None

    def show(self, image: Image.Image, *, of: int) -> NewView:
        """An edited picture of the whole of a view (drawn on, brightened …), brought to its fitted size."""
        view = self.view(of)
        try:
            size = self.vision.fit(image.size)
        except ImageError as error:
            raise ToolFailure(f"The picture cannot be shown: {error}.") from None
        key = self.store.add(image)
        shown = self.store.get(self.store.render(key, whole(image.size), size))
        return NewView(shown, view.original, onto(whole(view.size), size).then(view.transform))


@dataclass(frozen=True)
class Tool:
    """A callable that the model may use. Made by `@tool`; call it through `call_tool`, or directly in tests.

    `schema` is an OpenAI function schema, compact and the same in every process. Variants are made with
    `dataclasses.replace(tool, name=…, timeout_s=…)`; without a `timeout_s` a call may take what the recipe says, or
    `TIMEOUT_S`. A `pure` tool's result depends on its arguments and the views alone: calls that are the same in episodes that
    share a store (the rollouts of a group) are made once, and its context's seed is 0. In a class, `@tool` on a method gives
    each instance its own tools.
    """

    name: str
    description: str
    timeout_s: float | None
    function: Callable[..., Any] = field(repr=False)
    arguments: Arguments = field(repr=False)
    pure: bool = False

    @cached_property
    def schema(self) -> dict[str, Any]:
        """`{"type": "function", "function": {"name", "description", "parameters"}}`."""
        function = {"name": self.name, "description": self.description, "parameters": self.arguments.schema}
        return {"type": "function", "function": function}

    async def __call__(self, ctx: ToolContext, arguments: Mapping[str, Any]) -> ToolResult:
        """Validate, run within the deadline, check the result.

        Raises `BadArguments`, `DeadlinePassed`, `RubbishResult`, or whatever the tool raises.
        """
        if not self.pure:
            return await self._run(ctx, arguments)

        async def make() -> tuple[Tool, ToolResult]:
            return self, await self._run(replace(ctx, seed=0), arguments)

        try:
            said = repr(arguments)
        except (RecursionError, ValueError):  # nested too deeply, a number too long: `_run` says so
            return await self._run(ctx, arguments)
        # A function goes by its id, which nothing else can have while it is held, and a method by whose it is.
        function = self.function if inspect.ismethod(self.function) else id(self.function)
        same = "tool", self.name, function, said, ctx.vision, tuple(ctx.views.values())
        _, result = await ctx.store.once.get(same, make)
        return result

    async def _run(self, ctx: ToolContext, arguments: Mapping[str, Any]) -> ToolResult:
        values = self.arguments.validate(arguments)
        called = partial(self.function, ctx, **values)
        run = run_async if self._is_async else run_blocking
        limit_s = TIMEOUT_S if self.timeout_s is None else self.timeout_s
        result = await run(called, name=f"The tool {self.name}", timeout_s=limit_s)
        return _checked(result, ctx)

    @cached_property
    def _is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)

    def __get__(self, instance: object, owner: type | None = None) -> Tool:
        return self if instance is None else replace(self, function=self.function.__get__(instance, owner))


class RubbishResult(Exception):
    """A tool returned something that is not a `ToolResult` of fitted pictures; the message is for its author."""


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, timeout_s: float | None = None, pure: bool = False
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout_s: float | None = None,
    pure: bool = False,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a typed function, `async` or not. Its docstring is what the model reads.

    The first parameter is the `ToolContext`; the others become the schema's properties, described by the docstring's
    `Args:`. A function that is not `async` runs in a thread; one that is must not block, or all wait for it. `pure` says that
    the result depends on the arguments and the views alone, so that a group's rollouts share it. Raises `PluginError` when
    types or docstring are missing.
    """
    if function is None:
        return partial(_make, name=name, timeout_s=timeout_s, pure=pure)
    return _make(function, name=name, timeout_s=timeout_s, pure=pure)


def _make(function: Callable[..., Any], /, *, name: str | None, timeout_s: float | None, pure: bool) -> Tool:
    name = name or str(getattr(function, "__name__", type(function).__name__))
    if timeout_s is not None and not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise PluginError(f"tool {name!r}: timeout_s must be a positive number of seconds, not {timeout_s!r}")
    arguments = Arguments(function, name, context=ToolContext)
    return Tool(name, arguments.description, timeout_s, function, arguments, pure)


def tools_of(found: object) -> tuple[Tool, ...]:
    """The tools of an object: itself when it is one, else its `@tool` methods in the order in which they are written.

    Raises `PluginError` when it has none.
    """
    if isinstance(found, Tool):
        return (found,)
    written = {name: None for owner in reversed(type(found).__mro__) for name in vars(owner)}
    tools = tuple(member for name in written if isinstance(member := getattr(found, name, None), Tool))
    if not tools:
        raise PluginError(f"{found!r} is neither a tool nor an object with @tool methods")
    return tools


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What became of a call. `result` is None exactly when `record.error` is set; the record has no views yet."""

    record: ToolRecord
    result: ToolResult | None = None


async def call_tool(tools: Mapping[str, Tool], call: ToolCall, ctx: ToolContext) -> ToolOutcome:
    """Call a tool by name. The one boundary: whatever the tool does ends in an outcome; only cancellation passes."""
    start = time.perf_counter()

    def failed(error: ToolError, text: str, detail: str = "") -> ToolOutcome:
        seconds = time.perf_counter() - start
        return ToolOutcome(ToolRecord(call, text=_clean(text), error=error, detail=detail, seconds=seconds))

    chosen = tools.get(call.name)
    if chosen is None:
        return failed(ToolError.UNKNOWN_TOOL, f"There is no tool {call.name[:80]!r}.{suggest(call.name[:80], tools)}")
    crash = f"The tool {chosen.name} failed with an internal error."
    try:
        result = await chosen(ctx, call.arguments)
    except BadArguments as error:
        return failed(ToolError.BAD_ARGUMENTS, str(error))
    except ToolRetry as error:
        return failed(ToolError.RETRY, str(error))
    except ToolFailure as error:
        return failed(ToolError.FAILED, str(error))
    except DeadlinePassed as error:
        return failed(ToolError.DEADLINE, str(error))
    except RubbishResult as error:
        return failed(ToolError.CRASHED, crash, f"{chosen.name} returned rubbish: {error}")
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        return failed(ToolError.CRASHED, crash, "the tool was cancelled from inside")
    except Exception:
        return failed(ToolError.CRASHED, crash, traceback.format_exc())
    return ToolOutcome(ToolRecord(call, text=result.text, seconds=time.perf_counter() - start), result)


def _clamped(box: Box, view: View) -> Box:
    """The part of a box that lies inside its view. Raises `ToolRetry` when that is less than a pixel a side."""
    width, height = view.size
    sides = (box.x0, box.y0, box.x1, box.y1)
    if not all(math.isfinite(side) for side in sides):
        raise ToolRetry(f"The box {list(sides)} is not made of finite numbers.")
    x0, x1 = (min(max(x, 0.0), float(width)) for x in (box.x0, box.x1))
    y0, y1 = (min(max(y, 0.0), float(height)) for y in (box.y0, box.y1))
    if x1 - x0 < 1 or y1 - y0 < 1:
        raise ToolRetry(
            f"The box {[round(side, 2) for side in sides]} has no area inside image {view.index}; a box is "
            f"[x0, y0, x1, y1] in pixels, with x0 < x1 <= {width} and y0 < y1 <= {height}."
        )
    return Box(x0, y0, x1, y1)


def _checked(result: object, ctx: ToolContext) -> ToolResult:
    if isinstance(result, str):
        result = ToolResult(result)
    if not isinstance(result, ToolResult):
        raise RubbishResult(f"a tool returns a ToolResult or a str, not {type(result).__name__}")
    if not isinstance(result.text, str):
        raise RubbishResult(f"ToolResult.text must be a str, not {type(result.text).__name__}")
    if not isinstance(result.images, (tuple, list)):
        raise RubbishResult(f"ToolResult.images must be a tuple of NewView, not {type(result.images).__name__}")
    for new in result.images:
        if not isinstance(new, NewView) or not isinstance(new.image, Image.Image):
            raise RubbishResult(f"ToolResult.images holds {type(new).__name__}; make views with ctx.look or ctx.show")
        if ctx.vision.fit(new.image.size) != new.image.size or new.original not in ctx.store:
            raise RubbishResult(f"a view of {new.image.size} is not one of ctx.look or ctx.show")
        try:
            new.transform.inverse()
        except ValueError as error:
            raise RubbishResult(
                f"a view's transform cannot be undone: {error}; make views with ctx.look or ctx.show"
            ) from None
    return ToolResult(_clean(result.text), tuple(result.images))


def _clean(text: str) -> str:
    """Text that can be encoded, and is not so long that it would fill the context."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}… (cut: {len(text)} characters)"


callable_module(__name__, tool)
