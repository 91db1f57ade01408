"""The first views of a sample, made once for all its episodes in a store, also for those that begin together.

Decoding and resampling take long enough to hold up every other episode, so they are done in a thread. The G rollouts of a group
begin in the same moment: one of them does the work and the others wait for it on the event loop, where they take no
thread; whoever comes later finds it done. What fails is told to all who waited, and tried again for who comes later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from weakref import WeakKeyDictionary

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
    if (known := _KNOWN.get(store)) is None:
        known = _KNOWN[store] = _Known()
    which = (id(sample), vision, scale)
    while which not in known.made:
        at_work = (which, asyncio.get_running_loop())
        if (work := known.at_work.get(at_work)) is not None:
            await work.over.wait()
            if work.error is not None:
                raise work.error
            continue  # made, or given up by an episode that was cancelled
        work = known.at_work[at_work] = _Work()
        try:
            make = partial(_make, sample, store, vision, scale)
            views = await run_blocking(make, name="Loading the images", timeout_s=LOAD_TIMEOUT_S)
            known.made[which] = sample, views
        except Exception as error:
            work.error = error
            raise
        finally:
            del known.at_work[at_work]
            work.over.set()
    return known.made[which][1]


def _make(sample: Sample, store: ImageStore, vision: VisionSpec, scale: float) -> tuple[NewView, ...]:
    return tuple(first_view(store, store.load(source), vision, scale=scale) for source in sample.images)


@dataclass(eq=False, slots=True)
class _Work:
    over: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None


@dataclass(eq=False, slots=True)
class _Known:
    """Of one store. A sample goes by its id, which nothing else can have while the sample is held."""

    made: dict[Hashable, tuple[Sample, tuple[NewView, ...]]] = field(default_factory=dict)
    at_work: dict[Hashable, _Work] = field(default_factory=dict)


_KNOWN: WeakKeyDictionary[ImageStore, _Known] = WeakKeyDictionary()
