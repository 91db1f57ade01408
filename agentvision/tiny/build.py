"""Rebuild the tiny model from nothing: tokenizer, fresh weights, reading, lessons, a plain Hugging Face folder.

`python -m agentvision.tiny --out OUT` does it, the same from the same seed on the same machine; scores, not bits, are what is the
same on another. Weights are stored in bfloat16 and loaded in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentvision.data.glyphs import GlyphVQA
from agentvision.data.handwriting import Handwriting
from agentvision.data.questions import SceneQuestions
from agentvision.tiny.config import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH_PX, tiny_config, tiny_model

READER_STEPS = 1000
EASY_LESSON_STEPS, LESSON_STEPS = 400, 2400

GUESSABLE: dict[str, Any] = {"alphabet": "47", "code_length": 1}
"""Settings of GlyphVQA in which every other guess is right."""


def lesson_worlds(seed: int) -> list[SceneQuestions]:
    """What lessons are about: mostly GlyphVQA, a sixth scans and a sixth questions that can be guessed."""
    settings: list[dict[str, Any] | None] = [{}, {}, None, {}, GUESSABLE, {}]
    return [
        Handwriting(split="train", seed=seed + k) if given is None else GlyphVQA(split="train", seed=seed + k, **given)
        for k, given in enumerate(settings)
    ]


def build_checkpoint(
    out: Path,
    *,
    seed: int = 0,
    reader_steps: int = READER_STEPS,
    lesson_steps: int = LESSON_STEPS,
    easy_lesson_steps: int = EASY_LESSON_STEPS,
    log: Callable[[str], None] = print,
) -> None:
    """Build the tiny model into the folder `out`; needs the extra `handwriting`.

    The defaults are a full build; fewer steps make a model that loads and cannot see.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from agentvision.tiny import lessons, prompts
    from agentvision.tiny.reader import train_reader
    from agentvision.tiny.tokenizer import build_tokenizer
    from agentvision.tokens import Codec
    from agentvision.vision_tower import use_matrix_patches, use_window_batches

    start = time.monotonic()

    def say(text: str) -> None:
        log(f"{time.monotonic() - start:6.0f} s  {text}")

    worlds = [GlyphVQA(split="train", seed=seed), Handwriting(split="train", seed=seed)]
    tokenizer = build_tokenizer(prompts.fixed_lines(), corpus=prompts.corpus(worlds))
    model: Any = tiny_model(tiny_config(tokenizer), seed=seed)
    use_matrix_patches(model)
    use_window_batches(model)
    processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH_PX,
        merge_size=MERGE,
        size={"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    )
    stop: Any = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config = GenerationConfig(eos_token_id=stop, pad_token_id=tokenizer.pad_token_id)
    train_reader(model, tokenizer, processor, worlds, steps=reader_steps, seed=seed, log=say)
    course = lessons.Lessons(
        Codec(tokenizer, processor, vocab_size=len(tokenizer), stop_ids=[stop]),
        lesson_worlds(seed),
        prompts.offered_tools(),
    )
    lessons.train_lessons(model, course, steps=lesson_steps, easy_steps=easy_lesson_steps, seed=seed, log=say)
    model.to(torch.bfloat16)
    for part in (model, tokenizer, processor):
        part.save_pretrained(out)
    model.config.dtype = torch.float32  # what to load them as
    model.config.save_pretrained(out)
    say(f"written to {out}")
