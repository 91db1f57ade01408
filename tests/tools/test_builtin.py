"""The tools that come with the package."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from agentvision.checks import check_tool
from agentvision.compute import VisionSpec
from agentvision.env import FirstView, VisionEnv
from agentvision.images import ImageStore
from agentvision.protocol import Protocol
from agentvision.tool import Tool
from agentvision.tools import crop, resize_image, zoom
from agentvision.types import Message, Sample, View

SIZE = (784, 392)


@pytest.mark.parametrize("made", [crop, resize_image, zoom], ids=lambda made: made.name)
def test_each_keeps_its_contract(made: Tool):
    check_tool(made)


def picture() -> Image.Image:
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    return Image.fromarray(np.stack([x * 255 / SIZE[0], y * 255 / SIZE[1], x * 0], axis=-1).astype(np.uint8))


async def use(call: str, scale: float = 0.5) -> tuple[ImageStore, View | None, str]:
    store = ImageStore()
    env = VisionEnv(
        tools=[crop, resize_image, zoom],
        vision=VisionSpec(),
        store=store,
        protocol=Protocol(),
        first_view=FirstView(scale),
    )
    await env.reset(Sample("s", "?", (picture(),)), seed=0)
    result = await env.step(Message("assistant", (f"<think>.</think><tool_call>{call}</tool_call>",)))
    record = result.turn.tool
    assert record is not None
    return store, env.views[-1] if record.views else None, record.text


async def test_resize_image_returns_the_original_itself():
    _, view, _ = await use('{"name": "resize_image", "arguments": {}}')
    assert view is not None and view.size == SIZE and view.image == view.original


async def test_resize_image_returns_a_size_between():
    _, view, _ = await use('{"name": "resize_image", "arguments": {"scale": 0.75}}')
    assert view is not None and view.size == (588, 280) and view.transform(*view.size) == pytest.approx(SIZE)


@pytest.mark.parametrize("scale", ["0", "1.5", "-1", '"1"'])
async def test_resize_image_takes_no_other_scale(scale: str):
    _, view, text = await use('{"name": "resize_image", "arguments": {"scale": SCALE}}'.replace("SCALE", scale))
    assert view is None and "'scale'" in text


async def test_resize_image_has_nothing_to_add_to_the_original():
    _, view, text = await use('{"name": "resize_image", "arguments": {}}', scale=1.0)
    assert view is None and "already" in text


async def test_crop_shows_the_region_at_the_originals_resolution():
    store, view, _ = await use('{"name": "crop", "arguments": {"box": [98, 49, 196, 98]}}')
    assert view is not None and view.size == (196, 112)
    assert view.transform(0, 0) == pytest.approx((196, 98), abs=3) and view.transform(*view.size) == pytest.approx(
        (392, 196), abs=3
    )
    red, green, _ = store.get(view.image).getpixel((98, 56))
    assert (red / 255 * SIZE[0], green / 255 * SIZE[1]) == pytest.approx((294, 147), abs=4)


async def test_zoom_magnifies_as_asked():
    _, twice, _ = await use('{"name": "zoom", "arguments": {"box": [98, 49, 196, 98]}}')
    _, four, _ = await use('{"name": "zoom", "arguments": {"box": [98, 49, 196, 98], "factor": 4}}')
    assert twice is not None and four is not None
    assert twice.size == (392, 196) and four.size == (784, 392)
    assert twice.transform(*twice.size) == pytest.approx(four.transform(*four.size))
