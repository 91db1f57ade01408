"""What tools show: regions of the original, whatever frame they were named in."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.compute import VisionSpec
from agentvision.errors import ToolRetry
from agentvision.geometry import Box
from agentvision.types import View
from agentvision.views import NewView

from .tool_cases import context


def shown_at(new: NewView, x: float, y: float, size: tuple[int, int] = (400, 200)) -> tuple[float, float]:
    """Where in the original a view's pixel comes from, read from its colours."""
    r, g, _ = new.image.getpixel((int(x), int(y)))
    return r / 255 * size[0], g / 255 * size[1]


def test_a_crop_of_a_crop_lies_where_its_pixels_say():
    ctx = context(scale=0.5)
    first = ctx.look(1, box=Box(50, 20, 150, 90))
    view = View(2, ctx.store.add(first.image), first.original, first.transform, first.image.size, (400, 200), 1, "crop")
    inner = replace(ctx, views={**ctx.views, 2: view})
    second = inner.look(2, box=Box(30, 30, 120, 100))
    for new in (first, second):
        w, h = new.image.size
        for x, y in ((w // 4, h // 4), (w // 2, h // 2), (3 * w // 4, 3 * h // 4)):
            assert new.transform(x + 0.5, y + 0.5) == pytest.approx(shown_at(new, x, y), abs=3)


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.floats(-500, 900)] * 4), st.floats(0.1, 8))
def test_any_box_is_inside_the_original_or_a_retry(sides: tuple[float, float, float, float], scale: float):
    ctx = context(scale=0.5)
    view = ctx.view(1)
    try:
        new = ctx.look(1, box=Box(*sides), scale=scale)
    except ToolRetry as retry:
        assert "image 1" in str(retry)
        return
    w, h = new.image.size
    assert min(w, h) >= 28 and ctx.vision.fit((w, h)) == (w, h)
    (x0, y0), (x1, y1) = new.transform(0, 0), new.transform(w, h)
    assert -1e-6 <= x0 < x1 <= 400 + 1e-6 and -1e-6 <= y0 < y1 <= 200 + 1e-6
    clamped = view.box_in_original(
        Box(max(sides[0], 0), max(sides[1], 0), min(sides[2], view.size[0]), min(sides[3], view.size[1]))
    )
    assert (x0, y0, x1, y1) == pytest.approx((clamped.x0, clamped.y0, clamped.x1, clamped.y1), abs=1e-4)


@pytest.mark.parametrize(
    "box",
    [Box(5, 5, 5, 50), Box(50, 5, 5, 50), Box(900, 900, 950, 950), Box(0.1, 0.1, 0.5, 0.5), Box(float("inf"), 0, 1, 1)],
)
def test_a_box_without_area_is_a_retry_that_says_what_a_box_is(box: Box):
    with pytest.raises(ToolRetry, match=r"no area inside image 1; a box is \[x0|finite"):
        context().look(1, box=box)


def test_a_region_too_thin_to_be_seen_is_a_retry():
    with pytest.raises(ToolRetry, match="cannot be shown"):
        context((1000, 200)).look(1, box=Box(0, 10, 900, 11))


def test_a_small_region_is_never_shown_below_what_the_processor_takes():
    assert min(context().look(1, box=Box(10, 10, 12, 12)).image.size) >= 28


def test_the_same_region_is_rendered_once_for_all():
    ctx = context()
    assert ctx.look(1, box=Box(10, 10, 99, 99)).image is ctx.look(1, box=Box(10, 10, 99, 99)).image


def test_looking_at_the_whole_shows_the_original_itself_where_it_fits():
    ctx = context((392, 196), scale=0.5)
    assert ctx.look(1).image is ctx.store.get(ctx.view(1).original)


def test_a_view_that_is_not_there():
    with pytest.raises(ToolRetry, match="no image 3; images so far: 1"):
        context().look(3)


def test_an_edited_picture_keeps_its_place():
    ctx = context((400, 200), scale=0.5)
    new = ctx.show(ctx.image(1).copy().resize((500, 250)), of=1)
    assert new.image.size == VisionSpec().fit((500, 250))
    assert new.transform(*new.image.size) == pytest.approx((400, 200))
    assert new.original == ctx.view(1).original
