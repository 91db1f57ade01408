"""VisionEnv: every turn has an outcome, and every view its place in the ledger."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agentvision import images
from agentvision.checks import check_env
from agentvision.compute import VisionSpec
from agentvision.env import Environment, FirstView, VisionEnv
from agentvision.errors import ImageError, PluginError
from agentvision.geometry import Affine
from agentvision.images import ImageStore, open_image
from agentvision.protocol import Protocol
from agentvision.tool import ToolContext, ToolResult, tool
from agentvision.tools import crop, resize_image, zoom
from agentvision.types import Message, ParseProblem, Sample, StepResult, StopReason, ToolError, ViewPart
from agentvision.views import NewView

PICTURE = Image.effect_noise((640, 320), 60).convert("RGB")
SAMPLE = Sample("s", "What is it?", (PICTURE,), answer="a secret answer")


def make(**options: Any) -> VisionEnv:
    settings = {"first_view": FirstView(0.5), "max_turns": 4, "max_images": 4} | options
    settings.setdefault("tools", [resize_image, crop, zoom])
    settings.setdefault("store", ImageStore())
    return VisionEnv(vision=VisionSpec(), protocol=Protocol(), **settings)


def says(action: str) -> Message:
    return Message("assistant", (f"<think>Hm.</think>{action}",))


def calls(name: str, **arguments: Any) -> Message:
    return says(f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>")


ANSWER = says("<answer>noise</answer>")


# --- the opening ----------------------------------------------------------------------------------------------------


async def test_the_first_view_has_a_quarter_of_the_tokens_and_spans_the_original():
    env = make()
    opening = await env.reset(SAMPLE, seed=0)
    (view,) = opening.views
    assert view.index == 1 and view.source == "first_view" and env.views == opening.views
    assert view.size == VisionSpec().fit((320, 160)) and view.original_size == (640, 320)
    assert view.tokens == VisionSpec().tokens((320, 160))
    assert opening.full_tokens == env.full_tokens == VisionSpec().tokens((640, 320)) > 3.5 * view.tokens
    assert view.transform(*view.size) == pytest.approx((640, 320)) and view.transform(0, 0) == (0, 0)
    assert [message.role for message in opening.messages] == ["system", "user"]
    assert ViewPart(1) in opening.messages[1].parts and "What is it?" in opening.messages[1].text


async def test_tools_are_announced_on_a_line_each():
    system = (await make().reset(SAMPLE, seed=0)).messages[0].text
    for announced in (resize_image, crop, zoom):
        assert json.dumps(announced.schema) in system.splitlines()


async def test_the_answer_is_nowhere_in_what_the_model_or_a_tool_sees():
    seen: list[ToolContext] = []

    @tool
    def look(ctx: ToolContext) -> str:
        """Look."""
        seen.append(ctx)
        return "ok"

    env = make(tools=[look])
    opening = await env.reset(SAMPLE, seed=0)
    result = await env.step(calls("look"))
    assert "secret" not in repr(opening) + repr(result) + repr(seen)


async def test_a_full_first_view_is_not_resampled_when_it_fits_already():
    env = make(first_view=FirstView(1.0))
    opening = await env.reset(Sample("s", "?", (Image.new("RGB", (56, 84)),)), seed=0)
    assert opening.views[0].image == opening.views[0].original


async def test_a_group_decodes_and_renders_once(monkeypatch: pytest.MonkeyPatch):
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    sample, store, work = Sample("s", "?", (buffer.getvalue(),)), ImageStore(), []
    real = images.render
    monkeypatch.setattr(images, "open_image", lambda s, **k: (work.append(type(s).__name__), open_image(s, **k))[1])
    monkeypatch.setattr(images, "render", lambda *a: (work.append("render"), real(*a))[1])

    async def episode() -> tuple[int, ...]:
        env = make(store=store)
        await env.reset(sample, seed=0)
        await env.step(calls("crop", box=[10, 10, 90, 90]))
        return tuple(id(store.get(view.image)) for view in env.views)

    assert len(set(await asyncio.gather(*(episode() for _ in range(8))))) == 1
    assert work.count("render") == 2
    assert work.count("bytes") == 1
    assert len(store) == 3


@pytest.mark.parametrize(
    "bad",
    [b"no picture", Path("missing.png"), Image.new("RGB", (201, 1)), "https://example.com/a.png"],
    ids=["bytes", "path", "201:1", "url"],
)
async def test_an_unreadable_image_raises_from_reset(bad: Any):
    with pytest.raises(ImageError):
        await make().reset(Sample("s", "?", (bad,)), seed=0)


@pytest.mark.parametrize("size", [(1, 1), (199, 1), (1, 200)])
async def test_tiny_and_thin_pictures_are_shown(size: tuple[int, int]):
    env = make()
    opening = await env.reset(Sample("s", "?", (Image.new("RGB", size),)), seed=0)
    assert min(opening.views[0].size) >= 28
    assert (await env.step(calls("resize_image"))).turn.tool is not None


async def test_a_question_without_images_works():
    env = make()
    opening = await env.reset(Sample("s", "One and one?"), seed=0)
    assert opening.views == () and opening.full_tokens == 0
    result = await env.step(calls("resize_image"))
    assert result.turn.tool is not None and result.turn.tool.error is ToolError.RETRY
    assert (await env.step(ANSWER)).stop is StopReason.ANSWERED


# --- steps ----------------------------------------------------------------------------------------------------------


async def test_asking_for_the_original_then_answering():
    env = make(max_turns=2, max_images=2)
    await env.reset(SAMPLE, seed=0)
    result = await env.step(calls("resize_image"))
    assert result.stop is None and result.observation is not None
    (view,) = result.observation.views
    assert view.index == 2 and view.source == "resize_image" and view.tokens == env.full_tokens
    assert result.turn.tool is not None and result.turn.tool.ok and result.turn.tool.views == (2,)
    (reply,) = result.observation.messages
    assert reply.role == "user" and reply.views == (2,)
    last = await env.step(ANSWER)
    assert last.stop is StopReason.ANSWERED and last.terminated and last.answer == "noise" and last.observation is None


async def test_a_tool_call_in_the_last_turn_is_not_run():
    ran: list[int] = []

    @tool
    def note(ctx: ToolContext) -> str:
        """Note."""
        ran.append(1)
        return "noted"

    env = make(tools=[note], max_turns=1)
    await env.reset(SAMPLE, seed=0)
    result = await env.step(calls("note"))
    assert result.stop is StopReason.MAX_TURNS and result.truncated and not ran and result.turn.tool is None


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        (calls("resize"), ToolError.UNKNOWN_TOOL, "resize_image"),
        (calls("crop"), ToolError.BAD_ARGUMENTS, "needs the argument 'box'"),
        (calls("crop", box=[5, 5, 5, 5]), ToolError.RETRY, "no area"),
        (calls("crop", box=[5, 5, 50, 50], image=7), ToolError.RETRY, "no image 7"),
    ],
)
async def test_a_failed_call_is_told_and_delivers_nothing(message: Message, error: ToolError, text: str):
    env = make()
    await env.reset(SAMPLE, seed=0)
    result = await env.step(message)
    assert result.stop is None and result.observation is not None and result.observation.views == ()
    assert result.turn.tool is not None and result.turn.tool.error is error and result.turn.tool.views == ()
    assert text in result.observation.messages[0].text and len(env.views) == 1


async def test_a_malformed_turn_is_told_while_turns_are_left():
    env = make(max_turns=2)
    await env.reset(SAMPLE, seed=0)
    first = await env.step(Message("assistant", ("I think it is noise.",)))
    assert first.stop is None and first.observation is not None
    assert "<think>" in first.observation.messages[0].text
    last = await env.step(Message("assistant", ("Really.",)))
    assert last.stop is StopReason.MALFORMED and last.terminated and last.turn.parsed.problem is ParseProblem.NO_THINK


async def test_a_malformed_turn_ends_the_episode_when_told_to_stop():
    env = make(on_malformed="stop")
    await env.reset(SAMPLE, seed=0)
    assert (await env.step(Message("assistant", ("noise",)))).stop is StopReason.MALFORMED


async def test_an_answer_in_a_malformed_turn_still_answers():
    env = make()
    await env.reset(SAMPLE, seed=0)
    result = await env.step(Message("assistant", ("It is <answer>noise</answer>",)))
    assert result.stop is StopReason.ANSWERED and result.answer == "noise" and result.turn.parsed.problem


async def test_more_images_than_the_budget_are_refused_and_told():
    env = make(max_images=2, max_turns=9)
    await env.reset(SAMPLE, seed=0)
    await env.step(calls("resize_image"))
    result = await env.step(calls("crop", box=[5, 5, 50, 50]))
    assert result.turn.tool is not None and result.turn.tool.error is ToolError.IMAGE_BUDGET
    assert (
        len(env.views) == 2
        and result.observation is not None
        and "No more images" in result.observation.messages[0].text
    )


async def test_questions_about_several_images_can_call_tools_too():
    env = make(max_images=2)
    opening = await env.reset(Sample("s", "Which?", (PICTURE, PICTURE.rotate(180), PICTURE)), seed=0)
    assert [view.index for view in opening.views] == [1, 2, 3]
    assert env.originals == (opening.views[0].original, opening.views[1].original, opening.views[0].original)
    result = await env.step(calls("resize_image", image=2))
    assert result.turn.tool is not None and result.turn.tool.views == (4,)
    assert env.views[3].original == env.originals[1]
    assert (await env.step(calls("resize_image", image=1))).turn.tool.error is ToolError.IMAGE_BUDGET  # type: ignore[union-attr]


async def test_a_box_is_in_the_frame_of_the_view_that_is_named():
    env = make()
    (first,) = (await env.reset(SAMPLE, seed=0)).views
    await env.step(calls("resize_image"))
    await env.step(calls("crop", box=[100, 50, 200, 100], image=1))
    await env.step(calls("crop", box=[100, 50, 200, 100], image=2))
    by_small, by_full = env.views[2:]
    assert by_small.transform(0, 0) == pytest.approx((100 * 640 / first.size[0], 50 * 320 / first.size[1]), abs=1e-4)
    assert by_full.transform(0, 0) == pytest.approx((100, 50), abs=2)


async def test_a_tool_that_crashes_or_hangs_costs_one_turn_only():
    release = threading.Event()

    @tool
    def crash(ctx: ToolContext) -> str:
        """Crash."""
        raise RuntimeError("/home/someone/secret")

    @tool(timeout_s=0.1)
    def hang(ctx: ToolContext) -> str:
        """Hang."""
        release.wait(20)
        return ""

    @tool
    def rubbish(ctx: ToolContext) -> ToolResult:
        """Rubbish."""
        return ToolResult(images=(NewView(PICTURE, "0", Affine()),))

    env = make(tools=[crash, hang, rubbish])
    await env.reset(SAMPLE, seed=0)
    kinds = []
    for name in ("crash", "hang", "rubbish"):
        result = await env.step(calls(name))
        assert result.observation is not None and result.turn.tool is not None
        assert "secret" not in result.observation.messages[0].text
        kinds.append(result.turn.tool.error)
    assert kinds == [ToolError.CRASHED, ToolError.DEADLINE, ToolError.CRASHED]
    assert (await env.step(ANSWER)).stop is StopReason.ANSWERED
    release.set()


async def test_each_call_has_its_own_seed_and_an_episode_the_same_ones():
    @tool
    def seed(ctx: ToolContext) -> str:
        """Tell."""
        return str(ctx.seed)

    async def told() -> list[str]:
        env = make(tools=[seed])
        await env.reset(SAMPLE, seed=11)
        return [(await env.step(calls("seed"))).turn.tool.text for _ in range(3)]  # type: ignore[union-attr]

    first = await told()
    assert len(set(first)) == 3 and first == await told()


async def test_an_environment_can_be_used_again():
    env = make()
    await env.reset(SAMPLE, seed=0)
    await env.step(calls("resize_image"))
    await env.step(ANSWER)
    with pytest.raises(RuntimeError, match="reset"):
        await env.step(ANSWER)
    await env.reset(SAMPLE, seed=0)
    assert len(env.views) == 1
    await env.close()
    with pytest.raises(RuntimeError, match="reset"):
        await env.step(ANSWER)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.text(max_size=40) | st.sampled_from([ANSWER.text, calls("resize_image").text, calls("x").text]),
        min_size=4,
        max_size=4,
    )
)
def test_any_four_turns_end_a_four_turn_episode(turns: list[str]):
    async def episode() -> list[StepResult]:
        env = make()
        await env.reset(SAMPLE, seed=0)
        results: list[StepResult] = []
        for text in turns:
            results.append(await env.step(Message("assistant", (text,))))
            if results[-1].stop:
                break
        assert [view.index for view in env.views] == list(range(1, len(env.views) + 1))
        return results

    results = asyncio.run(episode())
    assert results[-1].stop is not None and all((r.stop is None) == (r.observation is not None) for r in results)


def test_bad_settings_are_refused():
    with pytest.raises(PluginError, match="share a name"):
        make(tools=[crop, crop])
    with pytest.raises(ValueError, match="max_turns"):
        make(max_turns=0)
    for scale in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="scale"):
            FirstView(scale)


def test_it_keeps_its_own_contract():
    assert isinstance(make(), Environment)
    check_env(make(), SAMPLE)
    check_env(make(max_images=1, on_malformed="stop"), Sample("t", "No image?"))
