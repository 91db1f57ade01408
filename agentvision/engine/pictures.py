"""Images as a server is sent them: PNG in a data URL, at the size at which the vision tower sees them.

The resize is this side's (`images.render`, the processor's own rule and filter), so that the server's processor has none
left to do and both sides see the same pixels. Each image is encoded once, off the event loop, however many turns and
servers it goes to; least recently used ones go first.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections import OrderedDict

from agentvision.compute import VisionSpec
from agentvision.images import ImageStore, render
from agentvision.types import ImageHash
from agentvision.views import whole


class Pictures:
    """Data URLs by image hash, up to `cache_bytes`. For one event loop."""

    def __init__(self, vision: VisionSpec, *, cache_bytes: int = 1 << 29) -> None:
        self._vision = vision
        self._cache_bytes, self._bytes = cache_bytes, 0
        self._urls: OrderedDict[ImageHash, asyncio.Task[str]] = OrderedDict()

    async def url(self, store: ImageStore, image: ImageHash) -> str:
        """Two who ask at once share one piece of work, and one who leaves does not end it for the other."""
        work = self._urls.get(image)
        if work is None:
            work = self._urls[image] = asyncio.create_task(asyncio.to_thread(self._encode, store, image))
            work.add_done_callback(lambda done: self._keep(image, done))
        else:
            self._urls.move_to_end(image)
        return await asyncio.shield(work)

    def _encode(self, store: ImageStore, image: ImageHash) -> str:
        picture = store.get(image)
        picture = render(picture, whole(picture.size), self._vision.fit(picture.size))
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)  # it goes to a neighbour and is read once
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def _keep(self, image: ImageHash, done: asyncio.Task[str]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._urls.pop(image, None)
            return
        self._bytes += len(done.result())
        for old, work in list(self._urls.items()):
            if self._bytes <= self._cache_bytes:
                break
            if work.done() and old != image:
                self._bytes -= len(self._urls.pop(old).result())
