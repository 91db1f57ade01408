"""`resize_image`: the original of an image that was shown small. VisionThink's one tool."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agentvision.tool import ToolContext, ToolResult, ViewId, tool


@tool(pure=True)
def resize_image(ctx: ToolContext, image: ViewId = 1, scale: Annotated[float, Field(gt=0, le=1)] = 1.0) -> ToolResult:
    """Show an image at its original resolution.

    Args:
        image: Number of the image.
        scale: Share of the original's sides.
    """
    shown = ctx.view(image).size
    larger = ctx.look(image, scale=scale)
    if larger.image.size == shown:
        return ToolResult(f"Image {image} is shown at that size already.")
    return ToolResult(images=(larger,))
