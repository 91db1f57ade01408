"""A turn as vLLM takes it in one process: the trainer's own ids and pixels, by reference, and how to draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from agentvision.engine.part import BAN
from agentvision.engine.types import Ask
from agentvision.seeds import seed_for
from agentvision.tokens import Codec, token_count, trainer_ids
from agentvision.types import ImageSegment


def params_of(ask: Ask, context_tokens: int, said: Sequence[int] = ()) -> Any:
    """How to draw what is left of a turn that has said so much, in a context of so many tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=ask.temperature,
        top_p=ask.top_p,
        top_k=ask.top_k,
        # A turn that goes on must not draw again what it drew at its beginning.
        seed=(seed_for(ask.seed, len(said)) if said else ask.seed) % (1 << 63),
        max_tokens=min(ask.max_tokens, context_tokens - token_count(ask.segments)) - len(said),
        stop_token_ids=list(ask.stop_ids),
        ignore_eos=True,
        logit_bias=dict.fromkeys(ask.banned_ids, BAN) or None,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def prompt_of(ask: Ask, codec: Codec, said: Sequence[int] = ()) -> Any:
    """The ledger as vLLM takes it: expanded ids, and each image's pixels, place and name; then what the turn has said."""
    from vllm.inputs import TokensPrompt, mm_input
    from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

    ids = [*trainer_ids(ask.segments, codec.image_token_id), *said]
    items, hashes, places = [], [], []
    at = 0
    for segment in ask.segments:
        if isinstance(segment, ImageSegment):
            items.append(_item(codec.pixels(ask.store, segment.image)))
            hashes.append(segment.image)
            places.append(PlaceholderRange(offset=at, length=segment.tokens))
            at += segment.tokens
        else:
            at += len(segment.ids)
    if not items:
        return TokensPrompt(prompt_token_ids=ids)
    return mm_input(ids, MultiModalKwargsItems({"image": items}), {"image": hashes}, {"image": places})


def _item(pixels: Any) -> Any:
    """One preprocessed image as vLLM passes it to a Qwen-VL model."""
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFieldElem,
        MultiModalFlatField,
        MultiModalKwargsItem,
    )

    flat = MultiModalFlatField(slices=[slice(0, len(pixels.values))])
    return MultiModalKwargsItem(
        {
            "pixel_values": MultiModalFieldElem(data=pixels.values, field=flat),
            "image_grid_thw": MultiModalFieldElem(
                data=torch.tensor(pixels.grid), field=MultiModalBatchedField(keep_on_cpu=True)
            ),
        }
    )
