"""What the measurements on real engines run: a larger random model, and turns over prompts with pictures of noise."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from agentvision import build
from agentvision.engine.types import Ask
from agentvision.images import ImageStore
from agentvision.tokens import Codec
from agentvision.train.export import save_model
from agentvision.types import ImageSegment, Segment, TextSegment

LARGER = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8}


@contextmanager
def larger_model() -> Iterator[str]:
    """The folder of a random model of about 26 million parameters."""
    from agentvision.tiny.config import tiny_config, tiny_model

    with tempfile.TemporaryDirectory() as folder:
        source = build.model_path("package://tiny-vlm")
        codec = Codec.from_pretrained(source)
        config = tiny_config(codec.tokenizer)
        for name, value in LARGER.items():
            setattr(config.text_config, name, value)
        config.text_config.num_key_value_heads = 4
        config.text_config.layer_types = ["full_attention"] * LARGER["num_hidden_layers"]
        config.text_config.rope_parameters["mrope_section"] = [8, 12, 12]
        config.vision_config.out_hidden_size = LARGER["hidden_size"]
        save_model(tiny_model(config, seed=0), codec, Path(folder), source=source)
        yield folder


def segments_of(codec: Codec, store: ImageStore, *, images: int, seed: int, side: int) -> tuple[Segment, ...]:
    """A prompt's ledger, with square pictures."""
    draw = random.Random(seed)
    segments: list[Segment] = [TextSegment(codec.encode_text("what is it? ") + codec.encode_text(str(draw.random())))]
    for k in range(images):
        picture = Image.frombytes("RGB", (side, side), draw.randbytes(3 * side * side))
        grid = codec.vision.grid(picture.size)
        segments += [
            ImageSegment(k + 1, store.add(picture), grid, codec.vision.tokens(picture.size)),
            TextSegment(codec.encode_text(f" image {k + 1}")),
        ]
    return tuple(segments)


def ask_of(
    codec: Codec,
    store: ImageStore,
    segments: tuple[Segment, ...],
    *,
    session: str,
    seed: int,
    max_tokens: int,
    turn: int = 0,
) -> Ask:
    return Ask(session, session, turn, segments, store, 1.0, 1.0, 0, max_tokens, seed, codec.stop_ids, codec.banned_ids)
