"""Views lie where their maps say, in the size that was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agentvision.compute import VisionSpec
from agentvision.errors import ImageError
from agentvision.geometry import Box
from agentvision.images import ImageStore
from agentvision.views import first_view, rendered, whole


@settings(max_examples=25, deadline=None)
@given(
    size=st.tuples(st.integers(30, 300), st.integers(30, 300)),
    scale=st.sampled_from([0.25, 0.5, 1.0]),
    index=st.integers(1, 9),
)
def test_a_first_view_spans_its_original_and_is_entered_at_the_size_that_it_has(size, scale, index):
    store, vision = ImageStore(), VisionSpec()
    original = store.add(Image.new("RGB", size, "red"))
    new = first_view(store, original, vision, scale=scale)
    view = new.entered(index, source="first_view", store=store, vision=vision)
    assert (view.index, view.source, view.original, view.original_size) == (index, "first_view", original, size)
    assert view.size == store.size(view.image) == vision.fit(size, scale=scale)
    assert view.tokens == vision.tokens(view.size)
    box = view.box_in_original(whole(view.size))
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((0, 0, *size))


def test_a_region_shows_its_own_pixels():
    store = ImageStore()
    picture = Image.new("RGB", (80, 40), "red")
    picture.paste("blue", (40, 0, 80, 40))
    shown = rendered(store, store.add(picture), Box(48, 8, 72, 32), (48, 48))
    assert shown.image.getcolors() == [(48 * 48, (0, 0, 255))]
    assert shown.transform(0, 0) == (48, 8) and shown.transform(48, 48) == (72, 32)


def test_a_picture_too_thin_to_be_seen_is_refused():
    store = ImageStore()
    with pytest.raises(ImageError, match="one side may be at most"):
        first_view(store, store.add(Image.new("RGB", (2001, 10))), VisionSpec())
