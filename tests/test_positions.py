"""M-RoPE positions against the model's own rule, on random mixes of text and images."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentvision.positions import mrope_positions
from agentvision.types import ImageSegment, TextSegment

IMAGE_ID = 99


def text(n):
    return TextSegment(tuple(range(n)))


def image(height, width, *, merge=2, frames=1):
    return ImageSegment(1, "ab" * 32, (frames, height * merge, width * merge), frames * height * width)


def models_own(segments, merge):
    """(3, T) and the next position by the library's `get_rope_index`, which needs nothing of a model but its config."""
    from transformers import Qwen2_5_VLModel

    vision = SimpleNamespace(spatial_merge_size=merge, tokens_per_second=2)
    fake = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    fake.get_vision_position_ids = partial(Qwen2_5_VLModel.get_vision_position_ids, fake)
    kinds = [k for s in segments for k in ([1] * s.tokens if isinstance(s, ImageSegment) else [0] * len(s.ids))]
    grids = [s.grid for s in segments if isinstance(s, ImageSegment)]
    ids = torch.where(torch.tensor([kinds]) == 1, IMAGE_ID, 5)
    positions, delta = Qwen2_5_VLModel.get_rope_index(
        fake, ids, torch.tensor([kinds]), image_grid_thw=torch.tensor(grids) if grids else None
    )
    return positions[:, 0], int(delta) + len(kinds)


@settings(deadline=None)
@given(data=st.data(), merge=st.sampled_from([1, 2, 3]))
def test_positions_equal_the_models_own(data, merge):
    segments = [text(data.draw(st.integers(1, 9)))]
    for _ in range(data.draw(st.integers(0, 4))):
        segments.append(image(data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7)), merge=merge))
        # The library takes neighbouring images for one; templates always set tokens between them.
        segments += [text(data.draw(st.integers(1, 5))) for _ in range(data.draw(st.integers(1, 2)))]
    expected, following = models_own(segments, merge)
    made = mrope_positions(segments, merge=merge)
    assert torch.equal(made.ids, expected)
    if isinstance(segments[-1], TextSegment):
        assert made.next == following


def test_an_image_at_the_end_is_followed_at_its_longer_side():
    made = mrope_positions([text(3), image(2, 5)], merge=2)
    assert made.ids[:, 3:].T.tolist() == [[3, 3 + h, 3 + w] for h in range(2) for w in range(5)]
    assert made.next == 8


@given(cut=st.integers(0, 4))
def test_a_later_part_goes_on_where_the_first_ended(cut):
    segments = [text(3), image(2, 3), text(2), image(4, 1), text(1)]
    whole = mrope_positions(segments, merge=2)
    first = mrope_positions(segments[:cut], merge=2)
    second = mrope_positions(segments[cut:], merge=2, start=first.next)
    assert torch.equal(torch.cat([first.ids, second.ids], dim=1), whole.ids)
    assert second.next == whole.next


def test_no_segments_have_no_positions():
    made = mrope_positions([], merge=2, start=7)
    assert made.ids.shape == (3, 0)
    assert made.next == 7


def test_a_count_that_disagrees_with_the_grid_is_an_error():
    with pytest.raises(ValueError, match="view 1 has 7 tokens"):
        mrope_positions([ImageSegment(1, "ab" * 32, (1, 4, 4), 7)], merge=2)
