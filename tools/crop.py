"""`crop`: a region of an image, seen alone at the original's resolution."""

from __future__ import annotations

from agentvision.geometry import Box
from agentvision.tool import ToolContext, ToolResult, ViewId, tool


@tool(pure=True)
def crop(ctx: ToolContext, box: Box, image: ViewId = 1) -> ToolResult:
    """Cut a region out of an image and show it at the original's resolution.

    Args:
        box: [x0, y0, x1, y1] in pixels of the image.
        image: Number of the image.
    """
    return ToolResult(images=(ctx.look(image, box=box),))
