"""A tool of your own: a typed function whose docstring is what the model reads.

python examples/my_tool.py
agentvision tools try ./examples/my_tool.py:enhance picture.png factor=2.0
agentvision train visionthink 'env.tools=[resize_image, "./examples/my_tool.py:enhance"]'
"""

from typing import Annotated

from PIL import ImageEnhance
from pydantic import Field

from agentvision import ToolContext, ToolResult, ViewId, tool
from agentvision.checks import check_tool


@tool(pure=True)
def enhance(ctx: ToolContext, image: ViewId = 1, factor: Annotated[float, Field(gt=0, le=4)] = 1.5) -> ToolResult:
    """Show an image again with stronger contrast.

    Args:
        image: Number of the image.
        factor: How much stronger; 1 changes nothing.
    """
    picture = ImageEnhance.Contrast(ctx.image(image)).enhance(factor)
    return ToolResult(images=(ctx.show(picture, of=image),))


if __name__ == "__main__":
    check_tool(enhance)  # raises with every way in which it breaks the contract
    print(enhance.schema)
