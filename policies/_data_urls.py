"""Pictures as `data:` URLs: each is encoded once, off the event loop, however many turns and rollouts show it."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Literal, TypeAlias

from agentvision._workers import run_blocking
from agentvision.images import ImageStore
from agentvision.types import ImageHash

ImageFormat: TypeAlias = Literal["png", "jpeg"]

MAX_CHARS = 256 * 1024 * 1024
"""What is kept; the pictures that were not asked for for the longest time go first."""
_JPEG_QUALITY = 95
_TIMEOUT_S = 60.0


class DataUrls:
    """URLs by the picture's hash. Safe for threads and across event loops."""

    def __init__(self, image_format: ImageFormat = "png", *, max_chars: int = MAX_CHARS) -> None:
        self.encoded = 0
        """How many pictures were encoded."""
        self._format, self._max_chars = image_format, max_chars
        self._lock = threading.Lock()
        self._kept: OrderedDict[ImageHash, str] = OrderedDict()
        self._chars = 0
        self._making: dict[ImageHash, Future[str]] = {}

    async def of(self, store: ImageStore, key: ImageHash) -> str:
        """The URL of a stored picture. Raises `KeyError` when it is not in the store."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        return await run_blocking(lambda: self._once(store, key), name="Encoding an image", timeout_s=_TIMEOUT_S)

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()
            self._chars = 0

    def _once(self, store: ImageStore, key: ImageHash) -> str:
        """Encode it, or wait for the thread that does."""
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            made = self._making.get(key)
            mine = made is None
            if made is None:
                made = self._making[key] = Future()
        if mine:
            try:
                url = self._encode(store, key)
            except BaseException as error:
                with self._lock:
                    del self._making[key]
                made.set_exception(error)
            else:
                with self._lock:
                    del self._making[key]
                    self._keep(key, url)
                made.set_result(url)
        return made.result()

    def _encode(self, store: ImageStore, key: ImageHash) -> str:
        buffer = io.BytesIO()
        # Level 1 is up to three times as fast, and photographs come out no larger.
        options = {"compress_level": 1} if self._format == "png" else {"quality": _JPEG_QUALITY}
        store.get(key).save(buffer, self._format, **options)
        return f"data:image/{self._format};base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def _keep(self, key: ImageHash, url: str) -> None:
        self.encoded += 1
        self._kept[key] = url
        self._chars += len(url)
        while self._chars > self._max_chars and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._chars -= len(oldest)
