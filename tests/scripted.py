"""A policy without a model, for tests of what surrounds policies, and trajectories built by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from agentvision.data.glyphs import GlyphVQA
from agentvision.geometry import Affine
from agentvision.images import ImageStore
from agentvision.policy import Completion, Request
from agentvision.recipe import Recipe
from agentvision.types import (
    Message,
    ParsedTurn,
    Sample,
    Score,
    StopReason,
    ToolCall,
    ToolRecord,
    Trajectory,
    Turn,
    View,
    ViewPart,
)

Decide = Callable[[Sample, int], str | None]
"""From a question and the views seen so far to an answer, or None to ask for the original."""

LOOK = f"<think>small</think>\n<tool_call>{json.dumps({'name': 'resize_image', 'arguments': {}})}</tool_call>"


def ideal(sample: Sample, views: int) -> str | None:
    """Looks closer exactly when it must, and is always right."""
    return None if sample.meta["needs_original"] and views == 1 else sample.answer


class ScriptedPolicy:
    """Recognises each question by its original image, as only a test can."""

    trainable = False
    codec = None
    version = 0

    def __init__(self, samples: Sequence[Sample], decide: Decide = ideal) -> None:
        store = ImageStore()
        self._samples = {store.load(sample.images[0]): sample for sample in samples}
        self._decide = decide
        self.requests: list[Request] = []
        self.closed = False

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        answer = self._decide(self._samples[request.views[0].original], len(request.views))
        return Completion(LOOK if answer is None else f"<think>seen</think>\n<answer>{answer}</answer>")

    async def release(self, session: str) -> None:
        pass

    async def close(self) -> None:
        self.closed = True


def make(model: str, **options: Any) -> ScriptedPolicy:
    """The policy as a plug-in: `policy.backend: scripted:make`. `model` "broken" fails in every episode."""

    def fail(sample: Sample, views: int) -> str | None:
        raise ValueError("this model is broken")

    samples = [sample for seed in (0, 1) for sample in GlyphVQA(split="test", seed=seed, size=20, columns=5, rows=3)]
    return ScriptedPolicy(samples, fail if model.endswith("broken") else ideal)


def glyph_recipe(**changes: Any) -> Recipe:
    """A small recipe over GlyphVQA."""
    values: dict[str, Any] = {
        "name": "small",
        "model": {"path": "none"},
        "data": {"source": "glyphs", "options": {"columns": 5, "rows": 3}},
        "env": {"first_view": {"scale": 0.5}, "tools": ["resize_image"]},
        "rewards": [{"accuracy": {}}, {"format": {"weight": 0.5}}],
        "evaluation": {"n": 20},
    }
    return Recipe.model_validate(values | changes)


def trajectory(
    store: ImageStore,
    name: str = "a",
    *,
    called: bool = False,
    correct: bool | None = True,
    hard: bool | None = None,
    question: str = "What does the sign say?",
    said: str = "<think>seen</think>\n<answer>9</answer>",
    crop: bool = False,
    stop: StopReason = StopReason.ANSWERED,
    color: int = 0,
) -> Trajectory:
    """An episode of one or two turns over an image of 64×48 pixels; a view costs its area in 16×16 tiles."""
    original = store.add(Image.linear_gradient("L").resize((64, 48)).convert("RGB").point(lambda p: (p + color) % 256))
    first = store.add(store.get(original).resize((32, 24)))
    views = [View(1, first, original, Affine(a=2, e=2), (32, 24), (64, 48), 3, "first_view")]
    messages: list[Message] = [Message("system", ("You may look closer.",)), Message("user", (ViewPart(1), question))]
    turns: list[Turn] = []
    if called:
        call = ToolCall("crop" if crop else "resize_image", {})
        if crop:
            piece = store.add(store.get(original).crop((16, 12, 48, 36)))
            views.append(View(2, piece, original, Affine(c=16, f=12), (32, 24), (64, 48), 3, "crop"))
        else:
            views.append(View(2, original, original, Affine(), (64, 48), (64, 48), 12, "resize_image"))
        turns.append(Turn(LOOK, ParsedTurn(think="small", call=call), ToolRecord(call, (2,), seconds=0.002), tokens=9))
        messages += [Message("assistant", (LOOK,)), Message("user", (ViewPart(2),))]
    turns.append(Turn(said, ParsedTurn(think="seen", answer="9"), tokens=5))
    messages.append(Message("assistant", (said,)))
    return Trajectory(
        sample=Sample(name, question, answer="9", meta={} if hard is None else {"needs_original": hard}),
        turns=tuple(turns),
        messages=tuple(messages),
        views=tuple(views),
        stop=stop,
        answer="9",
        originals=(original,),
        full_tokens=12,
        scores={"accuracy": Score(None if correct is None else float(correct)), "format": Score(1.0)},
        reward=None if correct is None else correct + 0.5,
        correct=correct,
    )
