"""A trajectory as the viewer shows it: plain values for the template, and the images that they name.

Everything here is text from a model or a data set and is not trusted: the template escapes it, and what it may not be
(markup, an address, a script) it never becomes. Boxes are drawn on the original, whose pixels the ledger maps them to.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

from agentvision.errors import RunError
from agentvision.evaluate.metrics import needs_original
from agentvision.geometry import Box
from agentvision.journal import JournalEntry, load_image
from agentvision.types import ImageHash, Message, Trajectory, Turn, View, ViewPart

_TAG = re.compile(r"(</?(?:think|tool_call|answer|tools|tool_response)>)")
_CONTENTS = {"<think>": "think", "<tool_call>": "call", "<answer>": "answer"}

MAX_SIDE_PX = 1024
MAX_CHARS = 6000
"""Longer texts are cut in the middle; the journal has them whole."""


def card(entry: JournalEntry, *, source: str) -> dict[str, Any]:
    """What the template needs of one trajectory. `source` is "training" or "evaluation"."""
    t = entry.trajectory
    hard = needs_original(t)
    return {
        "source": source,
        "step": entry.step,
        "sample": t.sample.id,
        "rollout": t.rollout,
        "question": t.sample.question,
        "truth": t.sample.answer,
        "answer": t.answer,
        "outcome": {True: "right", False: "wrong", None: "invalid"}[t.correct],
        "called": "called" if t.looked_closer else "direct",
        "needs": {True: "hard", False: "easy", None: "unknown"}[hard],
        "stop": str(t.stop),
        "error": t.error.split("\n")[0],
        "reward": t.reward,
        "scores": [{"name": name, "value": s.value, "reason": s.reason} for name, s in t.scores.items()],
        "tokens": {
            "visual": t.visual_tokens_additive,
            "full": t.full_tokens,
            "output": t.sampled_tokens,
        },
        "seconds": t.seconds,
        "views": [_view(v) for v in t.views],
        "originals": [_original(key, t) for key in t.originals],
        "messages": _messages(t),
    }


def image_keys(cards: list[dict[str, Any]]) -> list[ImageHash]:
    """The images that these cards show, each once."""
    shown = [view["image"] for c in cards for view in c["views"]] + [o["image"] for c in cards for o in c["originals"]]
    return list(dict.fromkeys(shown))


def data_url(directory: Path, key: ImageHash) -> str | None:
    """An image of the journal as a data: URL, reduced where it is large; None when it cannot be read."""
    try:
        image = load_image(directory, key)
    except RunError:
        return None
    if max(image.size) > MAX_SIDE_PX:
        image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    png, webp = io.BytesIO(), io.BytesIO()
    image.save(png, format="PNG", optimize=True)
    image.save(webp, format="WEBP", lossless=True, quality=60)
    best = min(("png", png.getvalue()), ("webp", webp.getvalue()), key=lambda kind: len(kind[1]))
    if len(best[1]) > 150_000:
        lossy = io.BytesIO()
        image.save(lossy, format="WEBP", quality=85)
        best = ("webp", lossy.getvalue())
    return f"data:image/{best[0]};base64,{base64.b64encode(best[1]).decode()}"


def _view(view: View) -> dict[str, Any]:
    return {
        "index": view.index,
        "image": view.image,
        "source": view.source,
        "width": view.size[0],
        "height": view.size[1],
        "tokens": view.tokens,
    }


def _original(key: ImageHash, t: Trajectory) -> dict[str, Any]:
    views = [view for view in t.views if view.original == key]
    width, height = views[0].original_size
    return {"image": key, "width": width, "height": height, "boxes": [b for v in views if (b := _box(v)) is not None]}


def _box(view: View) -> dict[str, Any] | None:
    """The part of the original that a view shows; None when it is all of it (give or take the processor's rounding)."""
    box = view.box_in_original(Box(0, 0, *view.size))
    width, height = view.original_size
    if box.width >= 0.97 * width and box.height >= 0.97 * height:
        return None
    return {"view": view.index, "x": box.x0, "y": box.y0, "width": box.width, "height": box.height}


def _messages(t: Trajectory) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    turns = iter(t.turns)
    for message in t.messages:
        turn = next(turns, None) if message.role == "assistant" else None
        shown.append({"role": message.role, "pieces": _pieces(message), "turn": None if turn is None else _turn(turn)})
    return shown


def _turn(turn: Turn) -> dict[str, Any]:
    tool = turn.tool
    return {
        "tokens": turn.tokens,
        "problem": None if turn.parsed.problem is None else str(turn.parsed.problem),
        "tool": None if tool is None else tool.call.name,
        "tool_error": None if tool is None or tool.error is None else str(tool.error),
        "tool_seconds": None if tool is None else tool.seconds,
    }


def _pieces(message: Message) -> list[dict[str, str]]:
    """The message in pieces that the page colours: tags, what stands in them, other text, views."""
    pieces: list[dict[str, str]] = []
    for part in message.parts:
        if isinstance(part, ViewPart):
            pieces.append({"kind": "view", "text": f"view {part.view}"})
            continue
        inside = "text"
        for text in _TAG.split(_cut(part)):
            if _TAG.fullmatch(text):
                inside = _CONTENTS.get(text, "text") if message.role == "assistant" else "text"
                pieces.append({"kind": "tag", "text": text})
            elif text:
                pieces.append({"kind": inside, "text": text})
    return pieces


def _cut(text: str) -> str:
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return f"{text[:half]}\n[… {len(text) - MAX_CHARS:,} characters left out here …]\n{text[-half:]}"
