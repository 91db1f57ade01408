"""Tools: schema from the function, strict arguments, and a boundary that nothing gets through."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import Field

from agentvision import _workers
from agentvision.compute import VisionSpec
from agentvision.errors import PluginError, ToolFailure, ToolRetry
from agentvision.images import ImageStore
from agentvision.tool import (
    MAX_TEXT,
    NewView,
    Tool,
    ToolContext,
    ToolOutcome,
    ToolResult,
    ViewId,
    call_tool,
    tool,
    tools_of,
)
from agentvision.types import Affine, Box, ToolCall, ToolError, View


@tool
def measure(
    ctx: ToolContext,
    box: Box,
    unit: Literal["px", "cm"] = "px",
    image: ViewId = 1,
    title: str | None = None,
    weight: Annotated[float, Field(gt=0)] = 1.0,
    count: int = 0,
) -> ToolResult:
    """Measure a region,
    in the unit asked for.

    Args:
        box: Where to measure,
            in pixels.
        title: What to call it.
    """
    return ToolResult(f"{box} {unit} {image} {title} {weight!r} {count}")


def context(size: tuple[int, int] = (400, 200), scale: float = 1.0, seed: int = 0) -> ToolContext:
    """One view of a picture whose red and green are its own coordinates."""
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([x * 255 / size[0], y * 255 / size[1], x * 0], axis=-1).astype(np.uint8)
    store, vision = ImageStore(), VisionSpec()
    key = store.add(Image.fromarray(pixels))
    fitted = vision.fit(size, scale=scale)
    shown = store.render(key, Box(0, 0, *size), fitted)
    transform = Affine(a=size[0] / fitted[0], e=size[1] / fitted[1])
    view = View(1, shown, key, transform, fitted, size, vision.tokens(fitted), "first_view")
    return ToolContext({1: view}, store, vision, seed=seed)


async def call(made: Tool, ctx: ToolContext | None = None, /, **arguments: Any) -> ToolOutcome:
    return await call_tool({made.name: made}, ToolCall(made.name, arguments), ctx or context())


# --- schema ---------------------------------------------------------------------------------------------------------


def test_the_schema_is_compact_and_comes_from_types_and_docstring():
    assert measure.schema == {
        "type": "function",
        "function": {
            "name": "measure",
            "description": "Measure a region, in the unit asked for.",
            "parameters": {
                "type": "object",
                "properties": {
                    "box": {
                        "description": "Where to measure, in pixels.",
                        "type": "array",
                        "items": {"type": "number"},
                        "minItems": 4,
                        "maxItems": 4,
                    },
                    "unit": {"type": "string", "enum": ["px", "cm"], "default": "px"},
                    "image": {"type": "integer", "minimum": 1, "default": 1},
                    "title": {"type": "string", "description": "What to call it."},
                    "weight": {"type": "number", "exclusiveMinimum": 0, "default": 1.0},
                    "count": {"type": "integer", "default": 0},
                },
                "required": ["box"],
            },
        },
    }


def test_the_schema_is_the_same_in_every_process():
    code = "import json; from agentvision.tools import zoom; print(json.dumps(zoom.schema))"
    outs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, text=True, env={"PYTHONHASHSEED": h}
        ).stdout
        for h in ("1", "2")
    }
    assert len(outs) == 1


def test_numpy_and_sphinx_docstrings_are_read_too(capsys: pytest.CaptureFixture[str]):
    @tool
    def by_numpy(ctx: ToolContext, a: int) -> str:
        """Do it.

        Parameters
        ----------
        a
            How often.
        """
        return ""

    @tool
    def by_sphinx(ctx: ToolContext, a: int) -> str:
        """Do it.

        :param a: How often.
        """
        return ""

    for made in (by_numpy, by_sphinx):
        assert made.description == "Do it."
        assert made.schema["function"]["parameters"]["properties"]["a"]["description"] == "How often."
    assert capsys.readouterr().err == ""


def test_parameters_may_be_called_like_anything():
    @tool
    def odd(ctx: ToolContext, schema: str, copy: int, model_config: int = 3, self_: int = 1) -> str:
        """Odd names."""
        return f"{schema} {copy} {model_config} {self_}"

    assert odd.arguments.validate({"schema": "s", "copy": 1}) == {
        "schema": "s",
        "copy": 1,
        "model_config": 3,
        "self_": 1,
    }


def test_variants_are_made_by_replacing():
    other = replace(measure, name="other", timeout_s=3.0)
    assert other.schema["function"]["name"] == "other" and measure.schema["function"]["name"] == "measure"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f(ctx: ToolContext):\n    return 1", "no docstring"),
        ("def f():\n    'x'", "first parameter"),
        ("def f(a: int):\n    'x'", "first parameter"),
        ("def f(ctx: ToolContext, a):\n    'x'", "'a' has no type"),
        ("def f(ctx: ToolContext, *a: int):\n    'x'", "plain parameters"),
        ("def f(ctx: ToolContext, a: 'Nowhere'):\n    'x'", "cannot be read"),
        ("def f(ctx: ToolContext, box: int):\n    '''x\n\n    Args:\n        bax: y\n    '''", "Did you mean 'box'"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_with_the_fix(source: str, message: str):
    space: dict[str, Any] = {"ToolContext": ToolContext}
    exec(source, space)
    with pytest.raises(PluginError, match=message):
        tool(space["f"])


def test_a_type_without_a_schema_is_named():
    @tool
    def strange(ctx: ToolContext, lock: threading.Thread) -> str:
        """Strange."""
        return ""

    with pytest.raises(PluginError, match=r"strange.*no JSON schema"):
        _ = strange.schema


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_deadline_must_be_a_time(timeout_s: float):
    with pytest.raises(PluginError, match="timeout_s"):
        tool(timeout_s=timeout_s)(measure.function)


# --- arguments ------------------------------------------------------------------------------------------------------


async def test_arguments_arrive_as_their_types():
    outcome = await call(measure, box=[1, 2.5, 3, 4], unit="cm", weight=2)
    assert outcome.record.text == "Box(x0=1.0, y0=2.5, x1=3.0, y1=4.0) cm 1 None 2.0 0"
    assert outcome.record.ok and outcome.record.seconds > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "measure needs the argument 'box'."),
        ({"box": [1, 2, 3]}, "at least 4 items"),
        ({"box": [1, 2, 3, "4"]}, "'box.3'"),
        ({"box": [1, 2, 3, True]}, "'box.3'"),
        ({"box": {"x0": 1}}, "'box'"),
        ({"box": [0, 0, 9, float("nan")]}, "'box.3'"),
        ({"box": [0, 0, 9, 10**400]}, "box"),
        ({"box": [0, 0, 9, 9], "image": "1"}, "'image'"),
        ({"box": [0, 0, 9, 9], "image": 1.0}, "'image'"),
        ({"box": [0, 0, 9, 9], "image": True}, "'image'"),
        ({"box": [0, 0, 9, 9], "image": 0}, "greater than or equal to 1"),
        ({"box": [0, 0, 9, 9], "count": 1.5}, "'count'"),
        ({"box": [0, 0, 9, 9], "weight": "2"}, "'weight'"),
        ({"box": [0, 0, 9, 9], "unit": "inch"}, "'px' or 'cm'"),
        ({"box": [0, 0, 9, 9], "boxx": 1}, "measure has no argument 'boxx'. Did you mean 'box'?"),
        ({"box": [0, 0, 9, 9], "title": "\ud800"}, "not valid JSON"),
    ],
)
async def test_wrong_arguments_are_told_to_the_model(arguments: dict[str, Any], message: str):
    outcome = await call(measure, **arguments)
    assert outcome.result is None and outcome.record.error is ToolError.BAD_ARGUMENTS
    assert message in outcome.record.text
    outcome.record.text.encode()
    assert "pydantic" not in outcome.record.text


async def test_every_problem_is_named_and_long_values_are_cut():
    text = (await call(measure, unit="x" * 10_000, count="y", other=1)).record.text
    assert all(name in text for name in ("box", "unit", "count", "other")) and len(text) < 600


async def test_nesting_that_breaks_a_parser_is_a_wrong_argument():
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert (await call(measure, box=deep)).record.error is ToolError.BAD_ARGUMENTS


UNUSED = context()
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from(["box", "unit", "image", "title", "weight", "x"]), json_values))
def test_any_json_is_an_outcome(arguments: dict[str, Any]):
    record = asyncio.run(call(measure, UNUSED, **arguments)).record
    assert record.error in (None, ToolError.BAD_ARGUMENTS)
    record.text.encode()


async def test_an_unknown_tool_names_the_nearest():
    outcome = await call_tool({"measure": measure}, ToolCall("mesure", {}), context())
    assert outcome.record.error is ToolError.UNKNOWN_TOOL
    assert outcome.record.text == "There is no tool 'mesure'. Did you mean 'measure'?"


# --- what goes wrong inside -----------------------------------------------------------------------------------------


def raising(error: BaseException, *, is_async: bool) -> Tool:
    if is_async:

        async def fails(ctx: ToolContext) -> ToolResult:
            """Fail."""
            raise error
    else:

        def fails(ctx: ToolContext) -> ToolResult:
            """Fail."""
            raise error

    return tool(fails)


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ToolRetry("once more"), ToolError.RETRY),
        (ToolFailure("not possible"), ToolError.FAILED),
        (ValueError("secret /root/key"), ToolError.CRASHED),
        (TimeoutError("their own"), ToolError.CRASHED),
        (asyncio.CancelledError("their own"), ToolError.CRASHED),
        (SystemExit(3), ToolError.CRASHED),
        (RecursionError(), ToolError.CRASHED),
        (StopIteration(), ToolError.CRASHED),
        (MemoryError(), ToolError.CRASHED),
    ],
)
async def test_each_way_to_fail_is_recorded(error: BaseException, kind: ToolError, is_async: bool):
    record = (await call(raising(error, is_async=is_async))).record
    assert record.error is kind and not record.ok
    if kind is ToolError.CRASHED:
        assert record.text == "The tool fails failed with an internal error."
        assert record.detail and "secret" not in record.text
    else:
        assert record.text == str(error) and record.detail == ""


@pytest.mark.parametrize(
    "rubbish",
    [
        None,
        7,
        [Image.new("RGB", (28, 28))],
        ToolResult(text=3),  # type: ignore[arg-type]
        ToolResult(images=None),  # type: ignore[arg-type]
        ToolResult(images=("x",)),  # type: ignore[arg-type]
        ToolResult(images=(NewView(Image.new("RGB", (30, 30)), "0" * 64, Affine()),)),
        ToolResult(images=(NewView(Image.new("RGB", (56, 56)), "0" * 64, Affine()),)),
        ToolResult(images=(NewView(None, "0" * 64, Affine()),)),  # type: ignore[arg-type]
    ],
)
async def test_rubbish_is_recorded_with_a_reason_for_its_author(rubbish: Any):
    @tool
    def broken(ctx: ToolContext) -> ToolResult:
        """Break."""
        return rubbish

    record = (await call(broken)).record
    assert record.error is ToolError.CRASHED and "internal error" in record.text and record.detail


async def test_text_is_made_fit_to_be_encoded_and_cut():
    @tool
    def long(ctx: ToolContext) -> str:
        """Speak."""
        return "\ud800" + "a" * MAX_TEXT

    text = (await call(long)).record.text
    assert text.startswith("?a") and "cut" in text and len(text) < MAX_TEXT + 50


# --- deadlines ------------------------------------------------------------------------------------------------------


async def test_a_blocking_hang_ends_at_its_deadline_and_the_loop_runs_on():
    release = threading.Event()

    @tool(timeout_s=0.2)
    def hang(ctx: ToolContext) -> str:
        """Hang."""
        release.wait(20)
        return ""

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    start = time.perf_counter()
    record = (await call(hang)).record
    assert record.error is ToolError.DEADLINE and "0.2 s" in record.text
    assert time.perf_counter() - start < 5 and ticks >= 3
    ticking.cancel()
    release.set()


async def test_an_async_hang_ends_even_when_it_ignores_cancellation():
    @tool(timeout_s=0.1)
    async def stubborn(ctx: ToolContext) -> str:
        """Hang."""
        for _ in range(40):
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        return ""

    start = time.perf_counter()
    assert (await call(stubborn)).record.error is ToolError.DEADLINE
    assert time.perf_counter() - start < 1.9  # it would have gone on for 2 s


async def test_hanging_calls_do_not_use_up_the_threads_of_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_workers, "SIZE", 2)
    monkeypatch.setattr(_workers, "MAX_ABANDONED", 6)
    release = threading.Event()

    @tool(name="hang2", timeout_s=0.1)
    def hang(ctx: ToolContext) -> str:
        """Hang."""
        release.wait(30)
        return ""

    @tool
    def works(ctx: ToolContext) -> str:
        """Work."""
        return threading.current_thread().name

    ctx = context()
    for outcome in await asyncio.gather(*(call(hang, ctx) for _ in range(6))):
        assert outcome.record.error is ToolError.DEADLINE
    names = [outcome.record.text for outcome in await asyncio.gather(*(call(works, ctx) for _ in range(20)))]
    assert len(names) == 20 and all(name == "agentvision worker" for name in names)

    refused = (await call(hang, ctx)).record
    assert refused.error is ToolError.DEADLINE and "still hang" in refused.text
    release.set()
    for _ in range(100):
        await asyncio.sleep(0.02)
        if not _workers._POOL._abandoned["The tool hang2"]:
            break
    assert (await call(hang, ctx)).record.ok, "once the hanging calls have returned, the tool is back"


async def test_waiting_for_a_thread_is_not_counted_against_the_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_workers, "SIZE", 1)

    @tool(timeout_s=0.8)
    def slow(ctx: ToolContext) -> str:
        """Take a while."""
        time.sleep(0.1)
        return "done"

    ctx = context()
    outcomes = await asyncio.gather(*(call(slow, ctx) for _ in range(12)))
    assert all(outcome.record.ok for outcome in outcomes)


@pytest.mark.parametrize("is_async", [True, False])
async def test_cancelling_the_episode_passes_through(is_async: bool):
    started, cancelled = threading.Event(), threading.Event()

    async def waits(ctx: ToolContext) -> str:
        """Wait."""
        started.set()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    def blocks(ctx: ToolContext) -> str:
        """Wait."""
        started.set()
        time.sleep(0.3)
        return ""

    task = asyncio.create_task(call(tool(waits if is_async else blocks)))
    while not started.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert cancelled.is_set() == is_async


# --- views ----------------------------------------------------------------------------------------------------------


def shown_at(new: NewView, x: float, y: float, size: tuple[int, int] = (400, 200)) -> tuple[float, float]:
    """Where in the original a view's pixel comes from, read from its colours."""
    r, g, _ = new.image.getpixel((int(x), int(y)))
    return r / 255 * size[0], g / 255 * size[1]


def test_a_crop_of_a_crop_lies_where_its_pixels_say():
    ctx = context(scale=0.5)
    first = ctx.look(1, box=Box(50, 20, 150, 90))
    view = View(2, ctx.store.add(first.image), first.original, first.transform, first.image.size, (400, 200), 1, "crop")
    inner = replace(ctx, views={**ctx.views, 2: view})
    second = inner.look(2, box=Box(30, 30, 120, 100))
    for new in (first, second):
        w, h = new.image.size
        for x, y in ((w // 4, h // 4), (w // 2, h // 2), (3 * w // 4, 3 * h // 4)):
            assert new.transform(x + 0.5, y + 0.5) == pytest.approx(shown_at(new, x, y), abs=3)


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.floats(-500, 900)] * 4), st.floats(0.1, 8))
def test_any_box_is_inside_the_original_or_a_retry(sides: tuple[float, float, float, float], scale: float):
    ctx = context(scale=0.5)
    view = ctx.view(1)
    try:
        new = ctx.look(1, box=Box(*sides), scale=scale)
    except ToolRetry as retry:
        assert "image 1" in str(retry)
        return
    w, h = new.image.size
    assert min(w, h) >= 28 and ctx.vision.fit((w, h)) == (w, h)
    (x0, y0), (x1, y1) = new.transform(0, 0), new.transform(w, h)
    assert -1e-6 <= x0 < x1 <= 400 + 1e-6 and -1e-6 <= y0 < y1 <= 200 + 1e-6
    clamped = view.box_in_original(
        Box(max(sides[0], 0), max(sides[1], 0), min(sides[2], view.size[0]), min(sides[3], view.size[1]))
    )
    assert (x0, y0, x1, y1) == pytest.approx((clamped.x0, clamped.y0, clamped.x1, clamped.y1), abs=1e-4)


@pytest.mark.parametrize(
    "box",
    [Box(5, 5, 5, 50), Box(50, 5, 5, 50), Box(900, 900, 950, 950), Box(0.1, 0.1, 0.5, 0.5), Box(float("inf"), 0, 1, 1)],
)
def test_a_box_without_area_is_a_retry_that_says_what_a_box_is(box: Box):
    with pytest.raises(ToolRetry, match=r"no area inside image 1; a box is \[x0|finite"):
        context().look(1, box=box)


def test_a_region_too_thin_to_be_seen_is_a_retry():
    with pytest.raises(ToolRetry, match="cannot be shown"):
        context((1000, 200)).look(1, box=Box(0, 10, 900, 11))


def test_a_small_region_is_never_shown_below_what_the_processor_takes():
    assert min(context().look(1, box=Box(10, 10, 12, 12)).image.size) >= 28


def test_the_same_region_is_rendered_once_for_all():
    ctx = context()
    assert ctx.look(1, box=Box(10, 10, 99, 99)).image is ctx.look(1, box=Box(10, 10, 99, 99)).image


def test_looking_at_the_whole_shows_the_original_itself_where_it_fits():
    ctx = context((392, 196), scale=0.5)
    assert ctx.look(1).image is ctx.store.get(ctx.view(1).original)


def test_a_view_that_is_not_there():
    with pytest.raises(ToolRetry, match="no image 3; images so far: 1"):
        context().look(3)


def test_an_edited_picture_keeps_its_place():
    ctx = context((400, 200), scale=0.5)
    new = ctx.show(ctx.image(1).copy().resize((500, 250)), of=1)
    assert new.image.size == VisionSpec().fit((500, 250))
    assert new.transform(*new.image.size) == pytest.approx((400, 200))
    assert new.original == ctx.view(1).original


# --- tools with state -----------------------------------------------------------------------------------------------


class Notebook:
    def __init__(self) -> None:
        self.lines: list[str] = []

    @tool
    def write(self, ctx: ToolContext, line: str) -> str:
        """Write a line."""
        self.lines.append(line)
        return f"{len(self.lines)} lines"

    @tool
    async def read(self, ctx: ToolContext) -> str:
        """Read all lines."""
        return " / ".join(self.lines)


async def test_methods_are_the_tools_of_an_instance():
    one, two = Notebook(), Notebook()
    assert [t.name for t in tools_of(one)] == ["write", "read"]
    assert "self" not in json.dumps(one.write.schema)
    await call(one.write, line="a")
    await call(two.write, line="b")
    assert (await call(one.read)).record.text == "a" and (await call(two.read)).record.text == "b"


def test_what_has_no_tools_is_refused():
    assert tools_of(measure) == (measure,)
    with pytest.raises(PluginError, match="neither a tool"):
        tools_of(object())


async def test_callable_objects_and_context_are_passed_through():
    @tool
    async def seed(ctx: ToolContext) -> str:
        """Tell the seed."""
        return str(ctx.seed)

    assert (await call(seed, context(seed=5))).record.text == "5"
    assert not hasattr(context(), "sample")


async def test_drawing_on_a_view_changes_nothing_but_what_the_tool_shows():
    @tool
    def blacken(ctx: ToolContext) -> ToolResult:
        """Paint it black."""
        picture = ctx.image(1)
        picture.paste((0, 0, 0), (0, 0, *picture.size))
        return ToolResult(images=(ctx.show(picture, of=1),))

    ctx = context()
    before = ctx.image(1).tobytes()
    outcome = await call(blacken, ctx)
    assert outcome.result.images[0].image.getextrema() == ((0, 0),) * 3
    assert ctx.image(1).tobytes() == before
