"""The tiny model's shape: a Qwen2.5-VL of about a million parameters, for one CPU core.

Everything that makes the architecture is there (windowed and full vision attention, patch merging, grouped-query attention,
M-RoPE over time, height and width, tied embeddings); only the numbers are small. A visual token is 16x16 pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

PATCH_PX, MERGE = 8, 2
MIN_PIXELS, MAX_PIXELS = (PATCH_PX * MERGE) ** 2, 1024 * 1024
HIDDEN = 128
LAYERS = 3
_HEADS, _KV_HEADS = 4, 2
_MROPE_SECTION = [4, 6, 6]
"""Rotary frequencies of time, height and width: together half of the head's 32 dimensions."""

_RESIDUAL = ("o_proj.weight", "down_proj.weight", "attn.proj.weight")
"""What writes into the residual stream: drawn smaller, so that the sum over layers does not drown the embeddings."""


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The model's configuration, with the tokenizer's ids."""
    from transformers import Qwen2_5_VLConfig

    def token(text: str) -> Any:
        return tokenizer.convert_tokens_to_ids(text)

    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": _MROPE_SECTION},
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    vision = {
        "depth": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_heads": _HEADS,
        "patch_size": PATCH_PX,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "window_size": 4 * MERGE * PATCH_PX,
        "fullatt_block_indexes": [LAYERS - 1],
        "out_hidden_size": HIDDEN,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def tiny_model(config: Qwen2_5_VLConfig, *, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A fresh model in float32, its weights drawn with standard deviation 1/sqrt(fan_in).

    The library's default of 0.02 suits hidden sizes of thousands; at 128 it stays on a plateau.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                # Tied embeddings are also the output head, whose fan-in is the hidden size.
                fan_in = HIDDEN if "embed_tokens" in name else weight[0].numel()
                weight.normal_(0.0, 1 / math.sqrt(fan_in))
            if name.endswith(_RESIDUAL):
                weight.div_(math.sqrt(2 * LAYERS))
    return model.float()
