"""The size at which a picture is seen, and its tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.compute import VisionSpec
from agentvision.errors import ImageError

QWEN = VisionSpec()
side = st.integers(1, 6000)
specs = st.builds(
    VisionSpec,
    patch=st.sampled_from([8, 14, 16]),
    merge=st.sampled_from([1, 2]),
    min_pixels=st.integers(1, 20_000),
    max_pixels=st.integers(1, 2_000_000),
)


def test_known_token_counts():
    assert QWEN.factor == 28
    assert QWEN.tokens((2048, 1024)) == 73 * 37 == 2701
    assert QWEN.tokens((1024, 512)) == 37 * 18 == 666
    assert QWEN.fit((2048, 1024), scale=0.5) == (37 * 28, 18 * 28)
    assert QWEN.grid((1024, 512)) == (1, 36, 74)


@settings(deadline=None)
@given(width=side, height=side)
def test_agrees_with_the_processor_of_transformers(width: int, height: int):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    try:
        theirs = smart_resize(height, width, 28, QWEN.min_pixels, QWEN.max_pixels)[::-1]
    except ValueError:
        with pytest.raises(ImageError, match="at most 200 times"):
            QWEN.fit((width, height))
        return
    ours = QWEN.fit((width, height))
    # Theirs may round a thin picture past its own limit, and would refuse it the next time.
    assert ours == theirs or max(theirs) > 200 * min(theirs)


@settings(deadline=None)
@given(spec=specs, width=side, height=side, scale=st.floats(0.01, 4))
def test_a_fitted_size_is_whole_blocks_inside_the_budget_and_a_fixed_point(
    spec: VisionSpec, width: int, height: int, scale: float
):
    if max(width, height) > 200 * min(width, height):
        return
    for fitted in (spec.fit((width, height)), spec.fit((width, height), scale=scale)):
        assert min(fitted) >= spec.factor
        assert fitted[0] % spec.factor == 0 == fitted[1] % spec.factor
        assert max(fitted) <= 200 * min(fitted)
        assert fitted[0] * fitted[1] <= max(spec.max_pixels, spec.factor**2)
        assert spec.fit(fitted) == fitted
        t, h, w = spec.grid(fitted)
        assert (t, h * spec.patch, w * spec.patch) == (1, fitted[1], fitted[0])
        assert spec.tokens(fitted) * spec.merge**2 == h * w


def test_a_budget_of_one_block_never_gives_an_empty_side():
    spec = VisionSpec(min_pixels=1, max_pixels=784)
    assert [spec.fit(size) for size in ((4000, 10 * 28), (30, 5000), (1, 1))] == [(28, 28)] * 3


def test_a_scaled_view_of_a_picture_above_the_budget_starts_from_what_fits():
    spec = VisionSpec(max_pixels=1_000_000)
    full, half = spec.tokens((4000, 4000)), spec.tokens(spec.fit((4000, 4000), scale=0.5))
    assert half == pytest.approx(full / 4, rel=0.1)


@pytest.mark.parametrize("size", [(0, 10), (10, 0), (201, 1), (1, 201), (28 * 201, 28)])
def test_impossible_sizes_are_image_errors(size: tuple[int, int]):
    with pytest.raises(ImageError, match=str(size[0])):
        QWEN.fit(size)


@pytest.mark.parametrize("size", [(199, 1), (1, 199), (200, 1), (1, 1)])
def test_thin_and_tiny_pictures_are_seen(size: tuple[int, int]):
    assert min(QWEN.fit(size)) >= 28
    assert min(QWEN.fit(size, scale=0.5)) >= 28


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_scales_are_image_errors(scale: float):
    with pytest.raises(ImageError, match="scale"):
        QWEN.fit((100, 100), scale=scale)


def test_a_spec_of_nonsense_is_refused():
    with pytest.raises(ValueError, match="max_pixels"):
        VisionSpec(max_pixels=0)
