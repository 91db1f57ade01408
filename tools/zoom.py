"""`zoom`: a region of an image, magnified."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agentvision.geometry import Box
from agentvision.tool import ToolContext, ToolResult, ViewId, tool


@tool(pure=True)
def zoom(
    ctx: ToolContext, box: Box, image: ViewId = 1, factor: Annotated[float, Field(ge=1, le=8)] = 2.0
) -> ToolResult:
    """Show a region of an image magnified.

    Args:
        box: [x0, y0, x1, y1] in pixels of the image.
        image: Number of the image.
        factor: How many times larger than in the original.
    """
    return ToolResult(images=(ctx.look(image, box=box, scale=factor),))
