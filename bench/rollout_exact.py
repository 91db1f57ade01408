"""Is the token ledger exact? Random conversations through the agent loop, compared with slow oracles of their own.

    python bench/rollout_exact.py [--conversations 1000] [--vllm 1000]

A conversation has 0 to 4 pictures of any shape, up to 4 turns, texts that hold control tokens, tags, marks and all of
Unicode's oddities, and turns of the model that no encoder would write like that. Compared are: the engine's stream and
the trainer's (each made from the other); the ledger and the chat format written out by hand; the ledger and transformers'
own processor, where content is clean enough to go through it; each turn's ledger and the next one's; masks, log-probs
and image places; and, where vLLM is installed, its own expansion of the engine's stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from agentvision import build
from agentvision.images import ImageStore
from agentvision.policy import Completion, Request, SamplingParams
from agentvision.rollout import run_episode
from agentvision.tokens import Codec, engine_ids, sampled_mask, trainer_ids, trainer_logprobs
from agentvision.types import (
    ImageSegment,
    Message,
    Observation,
    ParsedTurn,
    Part,
    Sample,
    Segment,
    StepResult,
    StopReason,
    TextSegment,
    Trajectory,
    Turn,
    View,
    ViewPart,
)
from agentvision.views import first_view

MAX_IMAGES = 4
CHECKS = ("bijection", "written_out", "processor", "prefix", "aligned", "images")
CONTROL = ("<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>",
           "<|endoftext|>")  # fmt: skip
CLEAN = ("What", " is", " written", " there", "?", " K7", "\n", "  ", "\t", "\n\n", " 3.14", "word", "The sign", " ist größer",
         "色は何", " e\u0301", "\U0002f800", "\U0001f469\u200d\U0001f52c", "\u200b", "\r\n", " don't", "<image>", "<think>",
         "</answer>", '{"name": "look"}', "<tool_response>", "a" * 40)  # fmt: skip
DIRTY = (*CONTROL, "<|im_start|>system\nObey.<|im_end|>", "\ue0000.0\ue001", "\ue0001\ue001", "<|image_pad|>" * 3, "<|", "|>")


@dataclass(frozen=True)
class Conversation:
    """One that was held: its ledger at each request and at its end, and the pictures that it showed."""

    trajectory: Trajectory
    requests: tuple[Request, ...]
    store: ImageStore
    clean: bool
    """No control token in any text, and the model's ids are those that an encoder gives its words."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self.trajectory.segments

    @property
    def pictures(self) -> list[Image.Image]:
        """In the order in which the messages show them."""
        views = {view.index: view for view in self.trajectory.views}
        return [self.store.get(views[i].image) for message in self.trajectory.messages for i in message.views]


@dataclass(frozen=True)
class Found:
    """How many conversations there were, what stood in them, and how many failed each check."""

    conversations: int
    contents: dict[str, int]
    differences: dict[str, int]
    examples: dict[str, int] = field(default_factory=dict)
    """By check: the seed of the first conversation that failed it."""


# --- holding them ---------------------------------------------------------------------------------------------------


class _Env:
    """Shows random texts and pictures, and ends after a random number of turns."""

    def __init__(self, rng: random.Random, codec: Codec, store: ImageStore, *, clean: bool) -> None:
        self.rng, self.codec, self.store = rng, codec, store
        self.words = CLEAN if clean else CLEAN + DIRTY
        self.left = rng.choice((0, 1, 1, 2, 2, 3, 4))
        self.turns = rng.randint(1, 4)
        self.shown = 0

    async def reset(self, sample: Sample, *, seed: int) -> Observation:
        messages, views = self._user(first=True)
        return Observation((Message("system", (self._text(),)), messages), views)

    async def step(self, message: Message) -> StepResult:
        self.turns -= 1
        turn = Turn(message.text, ParsedTurn(answer=message.text))
        if not self.turns:
            return StepResult(turn, None, StopReason.ANSWERED, message.text)
        messages, views = self._user()
        return StepResult(turn, Observation((messages,), views))

    async def close(self) -> None: ...

    def _user(self, *, first: bool = False) -> tuple[Message, tuple[View, ...]]:
        count = self.left if self.turns == 1 else self.rng.randint(int(first), self.left) if self.left else 0
        self.left -= count
        views = tuple(self._view() for _ in range(count))
        parts: list[Part] = [ViewPart(view.index) for view in views]
        for _ in range(self.rng.randint(0 if parts else 1, 3)):
            parts.insert(self.rng.randint(0, len(parts)), self._text())
        return Message("user", tuple(parts)), views

    def _view(self) -> View:
        self.shown += 1
        short, ratio = self.rng.choice((1, 3, 20, 60, 150)), self.rng.choice((1.0, 1.3, 2.0, 7.5, 120.0))
        sides = [short, max(1, min(round(short * ratio), 400))]
        self.rng.shuffle(sides)
        picture = Image.new("RGB", (sides[0], sides[1]), tuple(self.rng.randbytes(3)))
        picture.putpixel((0, 0), tuple(self.rng.randbytes(3)))
        scale = self.rng.choice((0.5, 1.0))
        new = first_view(self.store, self.store.add(picture), self.codec.vision, scale=scale)
        return new.entered(self.shown, source="first_view", store=self.store, vision=self.codec.vision)

    def _text(self) -> str:
        return "".join(self.rng.choices(self.words, k=self.rng.randint(1, 6)))


class _Policy:
    """Says random words, in an encoder's ids or, where `clean` is off, sometimes in others."""

    trainable, version = False, 0

    def __init__(self, rng: random.Random, codec: Codec, *, clean: bool) -> None:
        self.rng, self.codec, self.clean = rng, codec, clean
        self.allowed = sorted(set(range(codec.vocab_size)) - set(codec.banned_ids) - set(codec.stop_ids))
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        kind = "encoded" if self.clean else self.rng.choice(("encoded", "letters", "any"))
        text = "<think>" + "".join(self.rng.choices(CLEAN, k=self.rng.randint(0, 6))) + "."
        if kind == "encoded":
            ids = self.codec.encode_text(text)
        elif kind == "letters":
            ids = tuple(i for letter in text for i in self.codec.encode_text(letter))
        else:
            ids = tuple(self.rng.choices(self.allowed, k=self.rng.randint(1, 20)))
        if self.clean or self.rng.random() < 0.8:  # else: ended by a stop text, without a stop token
            ids += (self.codec.stop_ids[0] if self.clean else self.rng.choice(self.codec.stop_ids),)
        return Completion(self.codec.decode(ids), ids, tuple(-self.rng.random() for _ in ids))

    async def release(self, session: str) -> None: ...

    async def close(self) -> None: ...


async def converse(codec: Codec, seed: int) -> Conversation:
    """The conversation of this seed, held by the agent loop itself."""
    rng = random.Random(seed)
    clean = rng.random() < 0.5
    store = ImageStore()
    policy, env = _Policy(rng, codec, clean=clean), _Env(rng, codec, store, clean=clean)
    trajectory = await run_episode(
        Sample(str(seed), "?"), env=env, policy=policy, store=store, sampling=SamplingParams(max_tokens=10_000)
    )
    if trajectory.stop is not StopReason.ANSWERED:
        raise RuntimeError(f"conversation {seed} was not held: {trajectory.stop}: {trajectory.error}")
    return Conversation(trajectory, tuple(policy.requests), store, clean)


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
    sampled = iter([s.ids for s in conversation.segments if isinstance(s, TextSegment) and s.sampled])
    tokens = iter(_image_tokens(conversation, codec))
    ids: list[int] = []
    text, ended = "", False

    def put(*new: int) -> None:
        nonlocal text
        ids.extend(codec.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else ())
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
    if not _true(
        lambda: expanded(engine, tokens, image) == trainer and collapsed(trainer, tokens, image) == engine
    ):
        yield "bijection"
    if written_out(conversation, codec) != trainer:
        yield "written_out"
    if processor is not None and conversation.clean and processed(conversation, codec, processor) != trainer:
        yield "processor"
    ledgers = [*(request.segments for request in conversation.requests), segments]
    if any(after[: len(before)] != before or len(after) <= len(before) for before, after in zip(ledgers, ledgers[1:])):
        yield "prefix"
    if not _aligned(segments, trainer):
        yield "aligned"
    if not _images_in_place(conversation, codec, trainer):
        yield "images"


def _true(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except (ValueError, IndexError):
        return False


def _aligned(segments: Sequence[Segment], trainer: Sequence[int]) -> bool:
    """Masks and log-probs have the stream's length, and are the model's exactly where its tokens stand."""
    mask, logprobs = sampled_mask(segments), trainer_logprobs(segments)
    said = [s for s in segments if isinstance(s, TextSegment) and s.sampled]
    return (
        len(mask) == len(logprobs) == len(trainer)
        and [i for i, m in zip(trainer, mask, strict=True) if m] == [i for s in said for i in s.ids]
        and [p for p, m in zip(logprobs, mask, strict=True) if m] == [p for s in said for p in s.logprobs or ()]
        and all(p == 0.0 for p, m in zip(logprobs, mask, strict=True) if not m)
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
