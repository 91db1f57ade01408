"""What a group shares: its pictures are read, shown, hashed and preprocessed once, and what encodes alike is one object."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import weakref
from collections import Counter
from functools import partial
from typing import Any

import pytest
from PIL import Image

from agentvision import first_views as module
from agentvision import images
from agentvision.env import FirstView, VisionEnv
from agentvision.errors import ImageError
from agentvision.first_views import first_views
from agentvision.images import ImageStore
from agentvision.policies.replay import ReplayPolicy
from agentvision.policy import Request, SamplingParams
from agentvision.protocol import Protocol
from agentvision.rollout import run_group
from agentvision.tokens import Codec
from agentvision.tools.resize_image import resize_image
from agentvision.types import ImageSegment, Sample

from .scripted import LOOK


def encoded(color: int = 0) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).point(lambda p: (p + color) % 256).convert("RGB").save(file, "PNG")
    return file.getvalue()


class Seeing(ReplayPolicy):
    """Preprocesses what it is shown, as a policy with a model does."""

    async def complete(self, request: Request):
        assert self.codec is not None
        for view in request.views:
            self.codec.pixels(request.store, view.image)
        return await super().complete(request)


async def test_a_group_of_16_works_on_each_picture_once(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    work: Counter[str] = Counter()
    for name in ("_opened", "render", "image_hash"):
        monkeypatch.setattr(images, name, partial(_counted, work, name, getattr(images, name)))
    store, before = ImageStore(), codec.preprocessed
    make_env = partial(
        VisionEnv,
        tools=[resize_image],
        vision=codec.vision,
        store=store,
        protocol=Protocol(),
        first_view=FirstView(0.5),
    )
    group = await run_group(
        Sample("s", "What?", (encoded(),)), size=16, make_env=make_env, store=store, sampling=SamplingParams(),
        policy=Seeing([LOOK, "<think>seen</think>\n<answer>9</answer>"], codec=codec),
    )  # fmt: skip
    assert all(t.looked_closer and t.answer == "9" for t in group.trajectories)
    assert len(store) == 2  # the first view and the original, which is shown as it is
    assert codec.preprocessed - before == 2
    assert work == {"_opened": 1, "render": 2, "image_hash": 2}
    for segments in zip(*(t.segments for t in group.trajectories), strict=True):
        if isinstance(segments[0], ImageSegment) or not segments[0].sampled:
            assert len({id(segment) for segment in segments}) == 1


def _counted(work: Counter[str], name: str, function: Any, *args: Any, **kwargs: Any) -> Any:
    work[name] += 1
    return function(*args, **kwargs)


@pytest.fixture
def slow_loads(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[str]]:
    """Loading waits for the event; the list has a name for each load that began."""
    go, begun = threading.Event(), []
    real = module._make

    def make(sample: Sample, *rest: Any):
        begun.append(sample.id)
        go.wait(30)
        return real(sample, *rest)

    monkeypatch.setattr(module, "_make", make)
    return go, begun


async def begin(sample: Sample, store: ImageStore, codec: Codec, count: int) -> list[asyncio.Task[Any]]:
    tasks = [
        asyncio.create_task(first_views(sample, store=store, vision=codec.vision, scale=0.5)) for _ in range(count)
    ]
    await asyncio.sleep(0)
    return tasks


async def test_when_the_one_that_loads_is_cancelled_another_goes_on(codec: Codec, slow_loads) -> None:
    go, begun = slow_loads
    first, *others = await begin(Sample("s", "?", (encoded(),)), ImageStore(), codec, 5)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    go.set()
    assert len({id(views) for views in await asyncio.gather(*others)}) == 1
    assert 1 <= len(begun) <= 2  # the first may not have come to a thread


async def test_a_failure_is_told_to_all_who_waited_and_tried_again_later(codec: Codec, slow_loads) -> None:
    go, begun = slow_loads
    bad, store = Sample("bad", "?", (b"no picture",)), ImageStore()
    tasks = await begin(bad, store, codec, 5)
    go.set()
    assert {type(error) for error in await asyncio.gather(*tasks, return_exceptions=True)} == {ImageError}
    assert begun == ["bad"]
    with pytest.raises(ImageError):
        await first_views(bad, store=store, vision=codec.vision, scale=0.5)
    assert begun == ["bad"] * 2


async def test_samples_at_a_reused_address_are_not_mistaken_and_a_store_frees_them(codec: Codec) -> None:
    store = ImageStore()
    held = weakref.ref(store)
    for k in range(20):  # each sample is let go of here
        (view,) = await first_views(Sample(str(k), "?", (encoded(k),)), store=store, vision=codec.vision, scale=1.0)
        assert store.get(view.original).getpixel((0, 0)) == images.open_image(encoded(k)).getpixel((0, 0))
    del store
    gc.collect()
    assert held() is None
