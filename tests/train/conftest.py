"""A random Qwen2.5-VL of a few thousand weights with ledgers made by hand, and a small recipe for whole runs."""

from __future__ import annotations

import random

import pytest
import torch

from agentvision import load_recipe
from agentvision.tokens import Pixels
from agentvision.types import ImageSegment, TextSegment

from .run_cases import save_model, write_recipe

VOCAB, MERGE = 97, 2
BANNED = (90, 91, 92)
IMAGE_TOKEN = 90


def tiny_model(seed: int = 0, attn: str = "sdpa"):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
            "spatial_merge_size": MERGE, "temporal_patch_size": 2, "window_size": 16, "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE_TOKEN, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93,
        tie_word_embeddings=False, attn_implementation=attn,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


@pytest.fixture
def model():
    return tiny_model()


def pixels(image: str) -> Pixels:
    """The image's name says its grid ("4x8"); its pixels are drawn from its name."""
    h, w = map(int, image.split("x"))
    generator = torch.Generator().manual_seed(h * 1000 + w)
    return Pixels(torch.randn(h * w, 3 * 2 * 4 * 4, generator=generator), (1, h, w))


def image(name: str, view: int = 1) -> ImageSegment:
    h, w = map(int, name.split("x"))
    return ImageSegment(view, name, (1, h, w), h * w // MERGE**2)


def text(rng: random.Random, length: int) -> TextSegment:
    return TextSegment(tuple(rng.randrange(2, 90) for _ in range(length)))


def said(rng: random.Random, length: int) -> TextSegment:
    """A sampled run of tokens with made-up log-probs."""
    ids = tuple(rng.randrange(2, 90) for _ in range(length))
    return TextSegment(ids, sampled=True, logprobs=tuple(-3 * rng.random() for _ in ids))


def ledgers(seed: int = 0, *, prompts: int = 3, group: int = 4):
    """Ledgers of `prompts` groups: an opening with an image, then one turn, or two with a second image between."""
    rng = random.Random(seed)
    result = []
    for p in range(prompts):
        opening = (text(rng, 3 + p), image(rng.choice(["4x4", "4x8", "8x4"])), text(rng, 4))
        for k in range(group):
            ledger = (*opening, said(rng, rng.randrange(1, 7)))
            if k % 2:
                ledger += (
                    text(rng, 2),
                    image(rng.choice(["8x8", "4x12"]), 2),
                    text(rng, 3),
                    said(rng, rng.randrange(1, 5)),
                )
            if k % 3 == 2:
                ledger += (text(rng, 4), image("12x12", 3))  # a tool turn that was never answered
            result.append(ledger)
    return result


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """A folder with a model of the tiny kind, its weights random."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder


@pytest.fixture
def recipe(small_model, tmp_path, monkeypatch):
    """A function from overrides to the small recipe; the working directory holds its plug-ins."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, small_model)
    return lambda *overrides: load_recipe("./small.yaml", overrides=overrides)
