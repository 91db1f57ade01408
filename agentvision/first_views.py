"""The first views of a sample, made once for all its episodes in a store, also for those that begin together.

Decoding and resampling take long enough to hold up every other episode, so they are done in a thread.
"""

from __future__ import annotations

from functools import partial

from agentvision._workers import run_blocking
from agentvision.compute import VisionSpec
from agentvision.images import ImageStore
from agentvision.types import Sample
from agentvision.views import NewView, first_view

LOAD_TIMEOUT_S = 60.0
"""For reading and first showing a sample's images."""


async def first_views(sample: Sample, *, store: ImageStore, vision: VisionSpec, scale: float) -> tuple[NewView, ...]:
    """The first views of a sample's images, in their order.

    Raises `ImageError` for one that cannot be shown, `DeadlinePassed` when it takes longer than `LOAD_TIMEOUT_S`.
    """

    async def make() -> tuple[Sample, tuple[NewView, ...]]:
        work = partial(_make, sample, store, vision, scale)
        return sample, await run_blocking(work, name="Loading the images", timeout_s=LOAD_TIMEOUT_S)

    # A sample goes by its id, which nothing else can have while the sample is held.
    _, views = await store.once.get(("first views", id(sample), vision, scale), make)
    return views


def _make(sample: Sample, store: ImageStore, vision: VisionSpec, scale: float) -> tuple[NewView, ...]:
    return tuple(first_view(store, store.load(source), vision, scale=scale) for source in sample.images)
