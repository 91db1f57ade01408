"""Pictures go over the wire whole, are encoded once, and do not pile up."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from agentvision.images import ImageStore, image_hash
from agentvision.policies._data_urls import DataUrls


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size=(40, 30, 3), dtype=np.uint8))


def decoded(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


async def test_png_loses_nothing_and_jpeg_says_what_it_is() -> None:
    store = ImageStore()
    key = store.add(noise(0))
    assert image_hash(decoded(await DataUrls().of(store, key))) == key
    url = await DataUrls("jpeg").of(store, key)
    assert url.startswith("data:image/jpeg;base64,") and decoded(url).format == "JPEG"


async def test_those_who_ask_at_once_share_one_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    store, urls = ImageStore(), DataUrls()
    keys = [store.add(noise(seed)) for seed in range(3)]
    got = await asyncio.gather(*(urls.of(store, key) for key in keys * 20))
    assert urls.encoded == 3 and got == got[:3] * 20


async def test_what_is_kept_is_bounded_and_the_newest_stay() -> None:
    store = ImageStore()
    keys = [store.add(noise(seed)) for seed in range(4)]
    size = len(await DataUrls().of(store, keys[0]))
    urls = DataUrls(max_chars=int(size * 2.5))
    for key in (*keys[:2], keys[0], keys[2]):  # the second is now the oldest
        await urls.of(store, key)
    assert urls.encoded == 3
    await urls.of(store, keys[0])
    assert urls.encoded == 3
    await urls.of(store, keys[1])
    assert urls.encoded == 4


async def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    store, urls = ImageStore(), DataUrls()
    key = image_hash(noise(0))
    failed = await asyncio.gather(*(urls.of(store, key) for _ in range(4)), return_exceptions=True)
    assert all(isinstance(error, KeyError) for error in failed)
    store.add(noise(0))
    assert image_hash(decoded(await urls.of(store, key))) == key


def test_it_serves_one_event_loop_after_another() -> None:
    store, urls = ImageStore(), DataUrls()
    key = store.add(noise(0))
    ask: Callable[[], str] = lambda: asyncio.run(urls.of(store, key))  # noqa: E731
    assert ask() == ask() and urls.encoded == 1
