"""Image embeddings, computed once per unique image and version of the vision tower."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from agentvision.images import ImageStore
from agentvision.policies._jobs import PolicyStats
from agentvision.policies._network import Network
from agentvision.tokens import Codec, Pixels
from agentvision.types import ImageHash, ImageSegment


class ImageEmbeddings:
    """Embeddings (tokens, H) by image hash; the least recently used go first above `max_tokens`.

    `call_tokens` bounds what goes through the tower in one call.
    """

    def __init__(
        self, network: Network, codec: Codec, stats: PolicyStats, *, max_tokens: int, call_tokens: int
    ) -> None:
        self._network, self._codec, self._stats = network, codec, stats
        self._max_tokens, self._call_tokens = max_tokens, call_tokens
        self._known: OrderedDict[ImageHash, torch.Tensor] = OrderedDict()
        self._tokens = 0
        # Preprocessing is worth threads only where an accelerator leaves the processor's cores idle.
        self._threads = ThreadPoolExecutor(4, "pixels") if network.device.type != "cpu" else None

    def clear(self) -> None:
        self._known.clear()
        self._tokens = 0

    def get(self, wanted: Mapping[ImageHash, tuple[ImageStore, ImageSegment]]) -> dict[ImageHash, torch.Tensor]:
        """The embeddings of all the images wanted. Raises `ValueError` when an image is not what the ledger says."""
        found = {h: self._known[h] for h in wanted if h in self._known}
        missing = [h for h in wanted if h not in found]
        for h in found:
            self._known.move_to_end(h)
        started = time.perf_counter()
        for batch in self._batches([(h, *wanted[h]) for h in missing]):
            fresh = self._network.images([p for _, p in batch])
            self._stats.vision_calls += 1
            self._stats.vision_images += len(batch)
            for (h, _), embeds in zip(batch, fresh, strict=True):
                expected = wanted[h][1].tokens
                if len(embeds) != expected:
                    raise ValueError(f"image {h[:12]} makes {len(embeds)} tokens, and the ledger says {expected}")
                found[h] = self._known[h] = embeds
                self._tokens += len(embeds)
        while self._tokens > self._max_tokens:
            self._tokens -= len(self._known.popitem(last=False)[1])
        if missing:
            self._stats.vision_s += time.perf_counter() - started
        return found

    def _batches(
        self, images: list[tuple[ImageHash, ImageStore, ImageSegment]]
    ) -> list[list[tuple[ImageHash, Pixels]]]:
        run = self._threads.map if self._threads and len(images) > 1 else map
        pixels = list(run(lambda item: self._codec.pixels(item[1], item[0]), images))
        batches: list[list[tuple[ImageHash, Pixels]]] = []
        room = 0
        for (h, _, segment), pixel in zip(images, pixels, strict=True):
            if not batches or segment.tokens > room:
                batches.append([])
                room = self._call_tokens
            batches[-1].append((h, pixel))
            room -= segment.tokens
        return batches
