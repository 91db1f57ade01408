"""Pictures as `data:` URLs: each is encoded once, off the event loop, however many turns and rollouts show it."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Literal, TypeAlias

from agentvision.images import ImageStore
from agentvision.types import ImageHash

ImageFormat: TypeAlias = Literal["png", "jpeg"]

MAX_CHARS = 256 * 1024 * 1024
"""What is kept; the pictures that were not asked for for the longest time go first."""
_JPEG_QUALITY = 95


class DataUrls:
    """URLs by the picture's hash. Safe for threads and across event loops."""

    def __init__(self, image_format: ImageFormat = "png", *, max_chars: int = MAX_CHARS) -> None:
        self.encoded = 0
        """How many pictures were encoded."""
        self._format, self._max_chars = image_format, max_chars
        self._lock = threading.Lock()
        self._made: OrderedDict[ImageHash, Future[str]] = OrderedDict()
        self._chars = 0

    async def of(self, store: ImageStore, key: ImageHash) -> str:
        """The URL of a stored picture. Raises `KeyError` when it is not in the store."""
        with self._lock:
            made = self._made.get(key)
            if made is not None:
                self._made.move_to_end(key)
            else:
                made = self._made[key] = Future()
                threading.Thread(target=self._make, args=(made, store, key), name="data-url", daemon=True).start()
        return await asyncio.shield(asyncio.wrap_future(made))

    def clear(self) -> None:
        with self._lock:
            self._made.clear()
            self._chars = 0

    def _make(self, made: Future[str], store: ImageStore, key: ImageHash) -> None:
        try:
            url = self._encode(store, key)
        except BaseException as error:
            with self._lock:
                self._made.pop(key, None)
            made.set_exception(error)
            return
        with self._lock:
            self.encoded += 1
            if self._made.get(key) is made:
                self._chars += len(url)
        made.set_result(url)
        self._shrink()

    def _encode(self, store: ImageStore, key: ImageHash) -> str:
        buffer = io.BytesIO()
        # Level 1: a third of the time for a few percent of the size.
        options = {"compress_level": 1} if self._format == "png" else {"quality": _JPEG_QUALITY}
        store.get(key).save(buffer, self._format, **options)
        return f"data:image/{self._format};base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def _shrink(self) -> None:
        """Forget the oldest, but never the last or one that is being made."""
        with self._lock:
            for key, made in list(self._made.items()):
                if self._chars <= self._max_chars or len(self._made) == 1:
                    return
                if made.done():
                    del self._made[key]
                    self._chars -= len(made.result())
