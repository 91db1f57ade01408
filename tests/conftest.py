"""Shared by all tests: nothing reaches a hub, and a codec with a real tokenizer and image processor."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest


@pytest.fixture(scope="session")
def codec():
    """The codec of the tiny model's kind, with no lines of its own: prompts are spelled out."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from agentvision.tiny.tokenizer import build_tokenizer
    from agentvision.tokens import Codec

    tokenizer = build_tokenizer([])
    processor = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=512 * 512)
    # Three rows more than the tokenizer has, as padded checkpoints do.
    return Codec(
        tokenizer, processor, vocab_size=len(tokenizer) + 3, stop_ids=[tokenizer.convert_tokens_to_ids("<|im_end|>")]
    )
