"""The token ledger: the only truth about what the model read and wrote.

A conversation is a tuple of segments (`types.Segment`): text ids, the model's own ids with their log-probs, and images.
It is only ever appended to; nothing is decoded and encoded again. Two streams are read off it: the *engine's*, with one
placeholder an image, and the *trainer's*, with as many as the image has tokens. What a token is (text, image, the model's
own) is known from the segment it stands in, never from its id.

The `Codec` is a model's side of it: tokenizer, chat template, image processor. It renders the model's own chat template
with a mark in place of every piece of content, so that control tokens come from the template alone: a question that
contains `<|im_start|>` or `<|image_pad|>` is encoded as those plain characters.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from agentvision.compute import VisionSpec
from agentvision.errors import ModelError, first_line
from agentvision.hub import reachable
from agentvision.types import ImageHash, ImageSegment, Message, Segment, TextSegment, View, ViewPart

if TYPE_CHECKING:
    import torch

    from agentvision.images import ImageStore

IMAGE_TOKEN = "<|image_pad|>"


# --- reading the streams --------------------------------------------------------------------------------------------


def engine_ids(segments: Iterable[Segment], image_token_id: int) -> list[int]:
    """The ids an engine takes: one placeholder an image."""
    return [i for s in segments for i in ([image_token_id] if isinstance(s, ImageSegment) else s.ids)]


def trainer_ids(segments: Iterable[Segment], image_token_id: int) -> list[int]:
    """The ids a forward pass takes: one placeholder for every token of an image. Length T = `token_count`."""
    return [i for s in segments for i in ([image_token_id] * s.tokens if isinstance(s, ImageSegment) else s.ids)]


def sampled_mask(segments: Iterable[Segment]) -> list[bool]:
    """(T,) over the trainer's stream: whether the model sampled the token (I(o_t) of Eq. 3)."""
    return [
        m for s in segments for m in ([False] * s.tokens if isinstance(s, ImageSegment) else [s.sampled] * len(s.ids))
    ]


def trainer_logprobs(segments: Iterable[Segment]) -> list[float]:
    """(T,) over the trainer's stream: the log-probs recorded at sampling, 0 where the model did not sample."""
    return [
        p
        for s in segments
        for p in ([0.0] * s.tokens if isinstance(s, ImageSegment) else s.logprobs or [0.0] * len(s.ids))
    ]


def token_count(segments: Iterable[Segment]) -> int:
    """T: tokens in the trainer's stream."""
    return sum(s.tokens if isinstance(s, ImageSegment) else len(s.ids) for s in segments)


# --- the codec ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pixels:
    """One image as the vision tower takes it: `values` (patches, C·T·P·P) float32, `grid` (t, h, w) in patches."""

    values: torch.Tensor
    grid: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Place:
    """In a rendered frame: where one part of one message goes."""

    message: int
    part: int


@dataclass(frozen=True, slots=True)
class _Content:
    """Text that is content: no control token is looked for in it."""

    text: str


_UNEVEN = "the model's chat template left out an image, or placed it twice; it must place one image token an image"

_Piece: TypeAlias = str | _Content | int
_Shape: TypeAlias = tuple[tuple[str, tuple[bool, ...]], ...]
"""Of a conversation: each message's role, and which of its parts are views."""

KEPT = 1024
"""Encoded texts, and encoded messages, that a codec keeps: those used last."""


class Codec:
    """Tokenizer, chat template and image processor of one model. Thread-safe.

    `pixels` is computed once per unique image and kept (least recently used go first, up to `cache_bytes`). The same text
    is encoded once, and so are the same messages: the rollouts of a group share the segments of their prompt and of
    equal replies, in time and in memory.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, *, vocab_size: int, stop_ids: Sequence[int],
                 cache_bytes: int = 2 << 30) -> None:  # fmt: skip
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.vocab_size = vocab_size
        size = image_processor.size
        self.vision = VisionSpec(
            patch=image_processor.patch_size,
            merge=image_processor.merge_size,
            min_pixels=size["shortest_edge"],
            max_pixels=size["longest_edge"],
        )
        self._plain, self._control = _plain_encoder(tokenizer)
        if IMAGE_TOKEN not in self._control:
            raise ModelError(
                f"the tokenizer has no {IMAGE_TOKEN!r}: agentvision reads images of the Qwen-VL family;"
                " take a model of that family"
            )
        self.image_token_id = self._control[IMAGE_TOKEN]
        self.stop_ids = tuple(stop_ids)
        self._control_pattern = re.compile("|".join(re.escape(c) for c in sorted(self._control, key=len, reverse=True)))
        self._pixels: OrderedDict[ImageHash, Pixels] = OrderedDict()
        self._pixel_bytes, self._cache_bytes = 0, cache_bytes
        self._lock = threading.Lock()
        self._making = [threading.Lock() for _ in range(64)]  # an image's own is one of them
        self._frames: dict[_Shape, list[str | _Place | int]] = {}
        self._text = lru_cache(KEPT)(self._encode_text)
        self._tail = lru_cache(KEPT)(self._encode_tail)
        self.preprocessed = 0
        """Images preprocessed so far: a group shares one."""

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        trust_remote_code: bool = False,
    ) -> Codec:
        """Load the codec of a model folder or hub id. Raises `ModelError` when a part is missing or cannot be read."""
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        path = reachable(path, revision=revision)
        try:
            options: dict[str, Any] = {"revision": revision or "main"}
            config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
            pixel_limits: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels}
            # The PIL processor by name: the automatic one wants torchvision.
            processor = Qwen2VLImageProcessorPil.from_pretrained(
                path, **options, **{k: v for k, v in pixel_limits.items() if v is not None}
            )
        except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
            raise ModelError(f"{str(path)!r} cannot be loaded as a model: {first_line(error)}") from error
        try:
            stops = GenerationConfig.from_pretrained(path, **options).eos_token_id
        except OSError:
            stops = None
        stops = tokenizer.eos_token_id if stops is None else stops
        stop_ids = [stops] if isinstance(stops, int) else list(stops or [])
        if not stop_ids:
            raise ModelError(f"{str(path)!r} names no end-of-turn token; set eos_token_id in generation_config.json")
        return cls(tokenizer, processor, vocab_size=config.get_text_config().vocab_size, stop_ids=stop_ids)

    @cached_property
    def banned_ids(self) -> tuple[int, ...]:
        """Ids that must never be sampled: every control token that does not end a turn, and rows past the tokenizer."""
        control = set(self._control.values()) - set(self.stop_ids)
        return tuple(sorted(control | set(range(len(self.tokenizer), self.vocab_size))))

    # --- encoding ---------------------------------------------------------------------------------------------------

    def encode_opening(self, messages: Sequence[Message], views: Sequence[View]) -> tuple[Segment, ...]:
        """The first messages, up to and including the generation prompt."""
        return self._encode_from(0, messages, views, ended=False)

    def encode_next(
        self, segments: Sequence[Segment], messages: Sequence[Message], views: Sequence[View]
    ) -> tuple[Segment, ...]:
        """What follows the model's last turn: its end token if it did not sample one, and all after it.

        `segments` is the ledger up to and including that turn; `messages` is the whole conversation.
        """
        last = max((k for k, m in enumerate(messages) if m.role == "assistant"), default=None)
        if last is None:
            raise ValueError("there is no turn of the model to go on from")
        final = segments[-1] if segments else None
        ended = isinstance(final, TextSegment) and final.sampled and final.ids[-1:] and final.ids[-1] in self.stop_ids
        return self._encode_from(last + 1, messages, views, ended=bool(ended))

    def keeps_prefix(self, messages: Sequence[Message]) -> bool:
        """Whether the template writes the conversation before the model's last turn as it did when that was sampled."""
        last = max((k for k, m in enumerate(messages) if m.role == "assistant"), default=None)
        if last is None:
            return True
        before, now = (self._frame(_shape(each)) for each in (messages[:last], messages))
        return now[: len(before) - 1] == before[:-1] and str(now[len(before) - 1]).startswith(str(before[-1]))

    def decode(self, ids: Sequence[int]) -> str:
        """Text for parsing and people; control tokens are left out. Never encoded again."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of content: no control token ever comes of it."""
        return self._text(text)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def _encode_from(
        self, start: int, messages: Sequence[Message], views: Sequence[View], *, ended: bool
    ) -> tuple[Segment, ...]:
        """The messages from `start` on, and what the template puts before them after the message before."""
        shape = _shape(messages)
        new = tuple(messages[start:])
        by_index = {v.index: v for v in views}
        return self._tail(shape, new, tuple(by_index[i] for m in new for i in m.views), ended)

    def _encode_tail(
        self, shape: _Shape, messages: tuple[Message, ...], views: tuple[View, ...], ended: bool
    ) -> tuple[Segment, ...]:
        """The segments of the last messages of a conversation of this shape.

        `views` are those that they show, in order; `ended` says that the turn before them ends in a stop token already.
        """
        frame = self._frame(shape)
        start = len(shape) - len(messages)
        begin = frame.index(start - 1) + 1 if start else 0
        segments = self._segments(
            [
                _Content(str(messages[p.message - start].parts[p.part])) if isinstance(p, _Place) else p
                for p in frame[begin:]
            ],
            views,
        )
        first = segments[0] if segments else None
        if ended and isinstance(first, TextSegment) and first.ids[0] in self.stop_ids:
            rest = first.ids[1:]
            return ((TextSegment(rest),) if rest else ()) + segments[1:]
        return segments

    def _frame(self, shape: _Shape) -> list[str | _Place | int]:
        if (frame := self._frames.get(shape)) is None:
            frame = self._frames[shape] = self._render(shape)
        return frame

    def _render(self, shape: _Shape) -> list[str | _Place | int]:
        """Render the template once for all conversations of one shape, with marks for content.

        The template never sees content, so it can neither change it nor be changed by it.
        """
        chat = []
        for k, (role, parts) in enumerate(shape):
            marks = [
                {"type": "image"} if is_view else {"type": "text", "text": f"\ue000{k}.{j}\ue001"}
                for j, is_view in enumerate(parts)
            ]
            marks.append({"type": "text", "text": f"\ue000{k}\ue001"})
            as_list = role == "user" or any(parts)
            chat.append({"role": role, "content": marks if as_list else "".join(m["text"] for m in marks)})
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        frame: list[str | _Place | int] = []
        for j, part in enumerate(re.split("\ue000([0-9.]+)\ue001", text)):
            if j % 2 == 0:
                frame.append(part)
            elif "." in part:
                frame.append(_Place(*map(int, part.split("."))))
            else:
                frame.append(int(part))
        return frame

    def _segments(self, pieces: Sequence[_Piece], views: Sequence[View]) -> tuple[Segment, ...]:
        waiting = iter(views)
        segments: list[Segment] = []
        ids: list[int] = []
        text = ""

        def flush_text() -> None:
            nonlocal text
            if text:
                ids.extend(self.encode_text(text))
            text = ""

        for piece in pieces:
            if isinstance(piece, int):
                continue
            if isinstance(piece, _Content):
                text += piece.text
                continue
            at = 0
            for match in self._control_pattern.finditer(piece):
                text += piece[at : match.start()]
                at = match.end()
                flush_text()
                if match.group() != IMAGE_TOKEN:
                    ids.append(self._control[match.group()])
                    continue
                if ids:
                    segments.append(TextSegment(tuple(ids)))
                    ids = []
                if (view := next(waiting, None)) is None:
                    raise ModelError(_UNEVEN)
                segments.append(ImageSegment(view.index, view.image, self.vision.grid(view.size), view.tokens))
            text += piece[at:]
        flush_text()
        if ids:
            segments.append(TextSegment(tuple(ids)))
        if next(waiting, None) is not None:
            raise ModelError(_UNEVEN)
        return tuple(segments)

    # --- pixels -----------------------------------------------------------------------------------------------------

    def has_pixels(self, image: ImageHash) -> bool:
        """Whether `pixels` has them ready."""
        return image in self._pixels

    def pixels(self, store: ImageStore, image: ImageHash) -> Pixels:
        """The image as the vision tower takes it, preprocessed once and shared; threads that ask together wait for one."""
        with self._making[hash(image) % len(self._making)]:
            return self._known_or_made(store, image)

    def _known_or_made(self, store: ImageStore, image: ImageHash) -> Pixels:
        with self._lock:
            if (known := self._pixels.get(image)) is not None:
                self._pixels.move_to_end(image)
                return known
        picture = store.get(image)
        made = self.image_processor(images=[picture], return_tensors="pt")
        t, h, w = (int(x) for x in made["image_grid_thw"][0])
        if (t, h, w) != self.vision.grid(picture.size):
            raise ModelError(
                f"the image processor made a grid of {(t, h, w)} of an image of {picture.size}, and the ledger counts"
                f" {self.vision.grid(picture.size)}; its settings are not those of the Qwen-VL family"
            )
        pixels = Pixels(made["pixel_values"], (t, h, w))
        with self._lock:
            if image not in self._pixels:
                self.preprocessed += 1
                self._pixels[image] = pixels
                self._pixel_bytes += pixels.values.nbytes
                while self._pixel_bytes > self._cache_bytes and len(self._pixels) > 1:
                    self._pixel_bytes -= self._pixels.popitem(last=False)[1].values.nbytes
            return self._pixels[image]


def _shape(messages: Sequence[Message]) -> _Shape:
    return tuple((m.role, tuple(isinstance(p, ViewPart) for p in m.parts)) for m in messages)


def _plain_encoder(tokenizer: Any) -> tuple[Any, dict[str, int]]:
    """An encoder that reads every control token in its input as plain characters, and the control tokens' ids.

    Control tokens are the special ones and whatever else is written `<|…|>`: some tokenizers mark only a part of those.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError("the model has no fast tokenizer (tokenizer.json); agentvision needs one")
    described = json.loads(backend.to_str())
    control: dict[str, int] = {}
    for added in described["added_tokens"]:
        added["special"] = added["special"] or bool(re.fullmatch(r"<\|.*\|>", added["content"]))
        if added["special"]:
            control[added["content"]] = added["id"]
    plain = Tokenizer.from_str(json.dumps(described))
    plain.encode_special_tokens = True
    return plain, control
