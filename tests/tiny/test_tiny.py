"""The tiny model: a real Qwen2.5-VL, a real tokenizer, and a checkpoint that sees what its world asks of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from agentvision import build
from agentvision.data.glyphs import ALPHABET, GlyphVQA
from agentvision.images import ImageStore
from agentvision.protocol import Protocol
from agentvision.recipe import load_recipe
from agentvision.tiny.config import tiny_config, tiny_model
from agentvision.tiny.prompts import corpus, fixed_lines
from agentvision.tiny.tokenizer import CONTROL, GRAMMAR, build_tokenizer
from agentvision.tokens import token_count
from agentvision.train.sft import demonstrate

CHECKPOINT = Path(build.model_path("package://tiny-vlm"))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(fixed_lines(), corpus=corpus([GlyphVQA(split="train")], samples=100))


@pytest.fixture(scope="module")
def policy():
    recipe = load_recipe("visionthink", profile="tiny", overrides={"model.device": "cpu"})
    return build.build_policy(recipe)


def test_text_survives_a_round_trip(tokenizer):
    for text in ("What does the red card say?", "naïve 日本語 🙂\n\ttabs", *fixed_lines()):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_an_answer_is_one_token_a_character(tokenizer):
    for first in ALPHABET:
        for second in "AZ09" + ALPHABET:
            ids = tokenizer(f"<answer>{first}{second}</answer>").input_ids
            assert tokenizer.convert_ids_to_tokens(ids) == ["<answer>", first, second, "</answer>"]


def test_grammar_and_fixed_lines_are_one_plain_token_each(tokenizer):
    for text in (*GRAMMAR, *fixed_lines()):
        assert len(tokenizer(text).input_ids) == 1, text
    assert set(tokenizer.all_special_tokens) <= set(CONTROL)
    assert len(tokenizer) <= 700


def test_the_chat_template_places_images(tokenizer):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}]},
        {"role": "assistant", "content": "A card."},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is there?<|im_end|>\n"
        "<|im_start|>assistant\nA card.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_model_is_small_and_valid(tokenizer):
    config = tiny_config(tokenizer)
    model = tiny_model(config)
    assert 1_000_000 < sum(p.numel() for p in model.parameters()) < 3_000_000
    head = config.text_config.hidden_size // config.text_config.num_attention_heads
    assert head == 32 and 2 * sum(config.text_config.rope_parameters["mrope_section"]) == head
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert weight.std().item() == pytest.approx(config.text_config.hidden_size**-0.5, rel=0.05)


def test_control_tokens_in_a_question_stay_text(policy):
    ids = policy.codec.encode_text("<|im_start|><|image_pad|>")
    assert policy.codec.image_token_id not in ids and len(ids) > 10


def test_transformers_loads_the_checkpoint_as_it_is():
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(CHECKPOINT)
    assert model.dtype == torch.float32
    assert sum(f.stat().st_size for f in CHECKPOINT.iterdir()) < 8e6


def _ledger(policy, sample, turns):
    recipe = load_recipe("visionthink", profile="tiny")
    store = ImageStore()
    make_env = build.env_maker(recipe, store=store, vision=policy.codec.vision, tools=build.build_tools(recipe))
    return asyncio.run(demonstrate(sample, turns, codec=policy.codec, make_env=make_env, store=store))


def test_an_episode_takes_tens_of_tokens(policy):
    data = GlyphVQA(split="test")
    sample = data[0]
    direct = _ledger(policy, sample, data.demonstration(sample, look=False))
    looked = _ledger(policy, sample, data.demonstration(sample, look=True))
    assert token_count(direct.segments) < 60 and token_count(looked.segments) < 110
    assert [view.tokens for view in looked.views] == [6, 24]


def test_a_demonstration_is_in_the_protocol(policy):
    data = GlyphVQA(split="test")
    sample = data[1]
    for look in (False, True):
        trajectory = _ledger(policy, sample, data.demonstration(sample, look=look))
        assert trajectory.looked_closer == look
        assert all(Protocol().parse(turn.text).problem is None for turn in trajectory.turns)
