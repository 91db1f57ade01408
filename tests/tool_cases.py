"""A tool, the context of its calls, and a call as an episode makes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from agentvision.compute import VisionSpec
from agentvision.geometry import Affine, Box
from agentvision.images import ImageStore
from agentvision.tool import (
    Tool,
    ToolContext,
    ToolOutcome,
    ToolResult,
    ViewId,
    call_tool,
    tool,
)
from agentvision.types import ToolCall, View


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
