"""Is the token ledger exact? Random conversations compared with slow oracles of their own.

    python bench/rollout_exact.py [--conversations 1000] [--no-vllm]

Compared are: the engine's stream and the trainer's (each made from the other); the ledger and the chat format written out
by hand; the ledger and transformers' own processor, where a conversation is clean enough to go through it; each turn's
ledger and the next one's; masks, log-probs and image places; and vLLM's own expansion of the engine's stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from conversations import CONTROL, MAX_IMAGES, Conversation, converse
from PIL import Image

from agentvision import build
from agentvision.tokens import Codec, engine_ids, sampled_mask, trainer_ids, trainer_logprobs
from agentvision.types import ImageSegment, ViewPart

CHECKS = ("bijection", "written_out", "processor", "prefix", "aligned", "images")


@dataclass(frozen=True)
class Found:
    """How many conversations there were, what stood in them, and how many failed each check."""

    conversations: int
    contents: dict[str, int]
    differences: dict[str, int]
    examples: dict[str, int] = field(default_factory=dict)
    """By check: the seed of the first conversation that failed it."""


# --- the oracles ----------------------------------------------------------------------------------------------------


def expanded(ids: Sequence[int], tokens: Sequence[int], image_token_id: int) -> list[int]:
    """An engine's ids with the k-th placeholder repeated `tokens[k]` times."""
    out: list[int] = []
    left = list(tokens)
    for i in ids:
        out += [i] * left.pop(0) if i == image_token_id else [i]
    if left:
        raise ValueError(f"{len(left)} images have no placeholder")
    return out


def collapsed(ids: Sequence[int], tokens: Sequence[int], image_token_id: int) -> list[int]:
    """The inverse: each image's run of placeholders, which must be whole, as one."""
    out: list[int] = []
    left, at = list(tokens), 0
    while at < len(ids):
        run = left.pop(0) if ids[at] == image_token_id else 1
        if any(i != ids[at] for i in ids[at : at + run]) and run > 1:
            raise ValueError(f"the run of placeholders at {at} is cut short")
        out.append(ids[at])
        at += run
    if left:
        raise ValueError(f"{len(left)} images have no placeholder")
    return out


def written_out(conversation: Conversation, codec: Codec) -> list[int]:
    """The trainer's ids by the chat format written down here, content as plain characters, the model's turns as sampled."""
    control = {name: codec.tokenizer.convert_tokens_to_ids(name) for name in CONTROL}
    sampled = iter([completion.ids for completion in conversation.said])
    tokens = iter(_image_tokens(conversation, codec))
    ids: list[int] = []
    text, ended = "", False

    def put(*new: int) -> None:
        nonlocal text
        ids.extend(
            codec.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else ()
        )
        ids.extend(new)
        text = ""

    for message in conversation.trajectory.messages:
        put(control["<|im_start|>"])
        text += f"{message.role}\n"
        if message.role == "assistant":
            put(*next(sampled))
            ended = ids[-1] in codec.stop_ids
            put(*() if ended else (control["<|im_end|>"],))
        else:
            for part in message.parts:
                if isinstance(part, str):
                    text += part
                    continue
                put(control["<|vision_start|>"])
                put(*[control["<|image_pad|>"]] * next(tokens))
                put(control["<|vision_end|>"])
            put(control["<|im_end|>"])
        text += "\n"
    return ids if ended else ids[:-1]  # nobody has asked for what follows the last turn


def _image_tokens(conversation: Conversation, codec: Codec) -> list[int]:
    """Of each picture shown, by the image processor itself."""
    return [math.prod(grid) // codec.vision.merge**2 for grid in _grids(conversation, codec)]


def _grids(conversation: Conversation, codec: Codec) -> list[tuple[int, ...]]:
    pictures = conversation.pictures
    if not pictures:
        return []
    made = codec.image_processor(images=pictures, return_tensors="pt")
    return [tuple(int(x) for x in grid) for grid in made["image_grid_thw"]]


def processed(conversation: Conversation, codec: Codec, processor: Any) -> list[int]:
    """The trainer's ids as transformers' own processor makes them of the chat template's text."""
    chat = [
        {"role": m.role, "content": m.text if m.role != "user" else [
            {"type": "image"} if isinstance(part, ViewPart) else {"type": "text", "text": part} for part in m.parts
        ]}
        for m in conversation.trajectory.messages
    ]  # fmt: skip
    text = codec.tokenizer.apply_chat_template(chat, tokenize=False).removesuffix("\n")
    made = processor(text=[text], images=conversation.pictures or None)
    return [int(i) for i in made["input_ids"][0]]


def make_processor(codec: Codec) -> Any:
    """Qwen2.5-VL's processor of transformers, around the codec's tokenizer and image processor. It needs torchvision."""
    from transformers import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    video = Qwen2VLVideoProcessor(patch_size=codec.vision.patch, merge_size=codec.vision.merge)
    return Qwen2_5_VLProcessor(
        image_processor=codec.image_processor,
        tokenizer=codec.tokenizer,
        video_processor=video,
        chat_template=codec.tokenizer.chat_template,
    )


# --- the checks -----------------------------------------------------------------------------------------------------


def failed_checks(conversation: Conversation, codec: Codec, processor: Any = None) -> Iterator[str]:
    """The names of those of `CHECKS` that the conversation fails. Without a `processor` that one is left out."""
    segments, image = conversation.segments, codec.image_token_id
    engine, trainer = engine_ids(segments, image), trainer_ids(segments, image)
    tokens = _image_tokens(conversation, codec)
    if not _true(lambda: expanded(engine, tokens, image) == trainer and collapsed(trainer, tokens, image) == engine):
        yield "bijection"
    if written_out(conversation, codec) != trainer:
        yield "written_out"
    if processor is not None and conversation.clean and processed(conversation, codec, processor) != trainer:
        yield "processor"
    ledgers = [*(request.segments for request in conversation.requests), segments]
    if any(after[: len(before)] != before or len(after) <= len(before) for before, after in pairwise(ledgers)):
        yield "prefix"
    if not _aligned(conversation, trainer):
        yield "aligned"
    if not _images_in_place(conversation, codec, trainer):
        yield "images"


def _true(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except (ValueError, IndexError):
        return False


def _aligned(conversation: Conversation, trainer: Sequence[int]) -> bool:
    """Masks and log-probs have the stream's length, and are what the policy said exactly where its tokens stand."""
    mask, logprobs = sampled_mask(conversation.segments), trainer_logprobs(conversation.segments)
    return (
        len(mask) == len(logprobs) == len(trainer)
        and [i for i, m in zip(trainer, mask, strict=True) if m] == [i for said in conversation.said for i in said.ids]
        and [p for p, m in zip(logprobs, mask, strict=True) if m]
        == [p for said in conversation.said for p in said.logprobs]
        and not any(p for p, m in zip(logprobs, mask, strict=True) if not m)
    )


def _images_in_place(conversation: Conversation, codec: Codec, trainer: Sequence[int]) -> bool:
    """Each image's run has the tokens of its processed grid, stands between its two marks, and is its view's."""
    begin, end = codec.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    views = {view.index: view for view in conversation.trajectory.views}
    shown = [i for message in conversation.trajectory.messages for i in message.views]
    grids = iter(_grids(conversation, codec))
    at, placed = 0, []
    for segment in conversation.segments:
        length = segment.tokens if isinstance(segment, ImageSegment) else len(segment.ids)
        if isinstance(segment, ImageSegment):
            grid = next(grids)
            view = views[segment.view]
            placed.append(segment.view)
            right = (
                segment.grid == grid
                and length == math.prod(grid) // codec.vision.merge**2 == view.tokens
                and segment.image == view.image
                and all(i == codec.image_token_id for i in trainer[at : at + length])
                and (trainer[at - 1], trainer[at + length]) == (begin, end)
            )
            if not right:
                return False
        at += length
    return placed == shown and sum(i == codec.image_token_id for i in trainer) == sum(
        s.tokens for s in conversation.segments if isinstance(s, ImageSegment)
    )


class VLLMExpansion:
    """vLLM's own expansion of prompts, by the renderer that its engines use; no engine is started."""

    def __init__(self, model: str) -> None:
        os.environ.update(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
        from vllm.engine.arg_utils import EngineArgs
        from vllm.renderers import renderer_from_config

        settings: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 4096}
        limits = {"image": MAX_IMAGES, "video": 0}
        self._config = EngineArgs(model, limit_mm_per_prompt=limits, **settings).create_engine_config()
        self._renderer = renderer_from_config(self._config)

    def __call__(self, engine: Sequence[int], pictures: Sequence[Image.Image]) -> list[int]:
        from vllm.inputs import TokensPrompt
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        prompt = TokensPrompt(prompt_token_ids=list(engine))
        if pictures:
            prompt["multi_modal_data"] = {"image": list(pictures)}
        parsed = parse_model_prompt(self._config.model_config, prompt)
        (made,) = self._renderer.render_cmpl([parsed], self._renderer.default_cmpl_tok_params)
        return list(made["prompt_token_ids"])


# --- counting -------------------------------------------------------------------------------------------------------


async def compare(
    codec: Codec, seeds: Sequence[int], *, processor: Any = None, expansion: VLLMExpansion | None = None
) -> Found:
    """Hold the conversations of these seeds and count the differences."""
    contents: Counter[str] = Counter()
    differences: Counter[str] = Counter()
    examples: dict[str, int] = {}
    for seed in seeds:
        conversation = await converse(codec, seed)
        trajectory = conversation.trajectory
        failed = list(failed_checks(conversation, codec, processor))
        if expansion is not None:
            engine = engine_ids(conversation.segments, codec.image_token_id)
            if expansion(engine, conversation.pictures) != trainer_ids(conversation.segments, codec.image_token_id):
                failed.append("vllm")
        differences.update(failed)
        for name in failed:
            examples.setdefault(name, seed)
        contents.update(turns=len(trajectory.turns), pictures=len(trajectory.views))
        contents[f"with {len(trajectory.views)} pictures"] += 1
        contents["compared with the processor"] += processor is not None and conversation.clean
        contents["compared with vLLM"] += expansion is not None
    names = [*CHECKS[:2], *(("processor",) if processor is not None else ()), *CHECKS[3:]]
    names += ["vllm"] if expansion is not None else []
    return Found(len(seeds), dict(sorted(contents.items())), {name: differences[name] for name in names}, examples)


def measure(*, conversations: int = 1000, vllm: bool = True) -> dict[str, Any]:
    """Counts of differences over the conversations of the seeds 0, 1, 2 … with the tiny model's codec."""
    path = build.model_path("package://tiny-vlm")
    codec = Codec.from_pretrained(path)
    processor = make_processor(codec)
    found = asyncio.run(
        compare(codec, range(conversations), processor=processor, expansion=VLLMExpansion(path) if vllm else None)
    )
    return asdict(found)


LABELS = {
    "bijection": "engine's stream ↔ trainer's, each made from the other",
    "written_out": "ledger against the chat format written out by hand",
    "processor": "ledger against transformers' processor",
    "prefix": "each turn's ledger begins with the one before",
    "aligned": "masks and log-probs stand at the model's tokens",
    "images": "each image's tokens: its grid's, in its place",
    "vllm": "vLLM's expansion of the engine's stream",
}


def table(results: dict[str, Any]) -> str:
    """The figures as they stand in docs/results.md."""
    contents = results["contents"]
    compared = {"processor": contents["compared with the processor"], "vllm": contents["compared with vLLM"]}
    head = f"{results['conversations']:,} random conversations, {contents['turns']:,} turns, {contents['pictures']:,} pictures."
    lines = [head, "", "| what | conversations | that differ |", "|---|---|---|"]
    for name, count in results["differences"].items():
        lines.append(f"| {LABELS[name]} | {compared.get(name, results['conversations']):,} | {count} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--no-vllm", action="store_true")
    arguments = parser.parse_args()
    results = measure(conversations=arguments.conversations, vllm=not arguments.no_vllm)
    print(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
