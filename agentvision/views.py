"""How a picture becomes a view: rendered from its original at a fitted size, then entered into an episode's ledger.

A `NewView` is what a tool, or an environment's opening, shows; it becomes a `View` when the episode gives it an index. The
map from its pixels to its original's is made where it is rendered, so that no one else has to know it.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from agentvision.compute import VisionSpec
from agentvision.geometry import Affine, Box, Size
from agentvision.images import ImageStore
from agentvision.types import ImageHash, View


@dataclass(frozen=True, slots=True)
class NewView:
    """A picture to be shown: already at its fitted size, with the map from its pixels to the original's."""

    image: Image.Image
    original: ImageHash
    transform: Affine

    def entered(self, index: int, *, source: str, store: ImageStore, vision: VisionSpec) -> View:
        """The entry of the ledger under this index; its pixels go to the store."""
        return View(
            index=index,
            image=store.add(self.image),
            original=self.original,
            transform=self.transform,
            size=self.image.size,
            original_size=store.size(self.original),
            tokens=vision.tokens(self.image.size),
            source=source,
        )


def rendered(store: ImageStore, original: ImageHash, region: Box, size: Size) -> NewView:
    """A region of an original, in its pixels, shown at a size."""
    key = store.render(original, region, size)
    return NewView(store.get(key), original, onto(region, size))


def first_view(store: ImageStore, original: ImageHash, vision: VisionSpec, *, scale: float = 1.0) -> NewView:
    """The whole of an original at the size of `VisionSpec.fit`. Raises `ImageError` for one that cannot be shown."""
    full = store.size(original)
    return rendered(store, original, whole(full), vision.fit(full, scale=scale))


def whole(size: Size) -> Box:
    """All of a picture of this size."""
    return Box(0.0, 0.0, float(size[0]), float(size[1]))


def onto(box: Box, size: Size) -> Affine:
    """The map from a picture of `size` that shows exactly `box` to the pixels in which the box is given."""
    return Affine(a=box.width / size[0], c=box.x0, e=box.height / size[1], f=box.y0)
