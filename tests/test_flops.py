"""The cost model against the paper's formula and against what torch counts."""

from __future__ import annotations

import pytest

from agentvision.compute import VisionSpec
from agentvision.errors import ModelError
from agentvision.flops import ModelShape, printed_flops

TINY = {
    "vision_config": {
        "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "patch_size": 8,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 32, "fullatt_block_indexes": [1],
    },
    "text_config": {
        "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512, "tie_word_embeddings": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    },
}  # fmt: skip


def test_the_printed_formula():
    n, d, m = 10, 4, 6
    assert printed_flops(n, layers=3, hidden=d, intermediate=m) == 3 * (4 * n * d * d + 2 * n * n * d + 2 * n * d * m)


def test_cached_context_costs_what_a_longer_prefill_costs_more():
    shape = ModelShape.from_config(TINY)
    whole = shape.language_flops(100, scored=0)
    assert shape.language_flops(60, scored=0) + shape.language_flops(40, context=60, scored=0) == whole


def test_another_family_is_refused():
    with pytest.raises(ModelError, match="vision_config"):
        ModelShape.from_config({"hidden_size": 8})


@pytest.mark.parametrize("size", [(64, 64), (112, 80)])
def test_the_exact_count_is_what_torch_counts(size: tuple[int, int]):
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    config = transformers.Qwen2_5_VLConfig(
        **TINY, image_token_id=10, video_token_id=11, vision_start_token_id=12, vision_end_token_id=13
    )
    config._attn_implementation = "eager"
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    spec = VisionSpec(patch=8, merge=2, min_pixels=256, max_pixels=65536)
    shape = ModelShape.from_config(config, vision=spec)
    grid = spec.grid(size)

    patches = torch.randn(grid[1] * grid[2], shape.patch_values)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.visual(patches, grid_thw=torch.tensor([grid]))
    assert shape.vision_flops(size) == pytest.approx(counter.get_total_flops(), rel=0.02)

    ids = torch.randint(20, 300, (1, 50))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    # Rotary angles are computed by a small product too, which is left out.
    assert shape.language_flops(50, scored=50, causal=False) == pytest.approx(counter.get_total_flops(), rel=0.01)
