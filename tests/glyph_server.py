"""A model at the end of a wire: a server that recognises GlyphVQA's pictures in what it is sent, and answers as the ideal would.

It decodes the pictures of each request and looks them up by their pixels, so it works exactly when what is sent is what the
environment showed.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from agentvision.compute import VisionSpec
from agentvision.images import ImageStore, image_hash
from agentvision.types import Sample
from agentvision.views import first_view
from tests.openai_server import Request

LOOK = '{"name": "resize_image", "arguments": {}}'


def pictures(body: Mapping[str, Any]) -> list[Image.Image]:
    """Of a request, in their order."""
    parts = [
        part for message in body["messages"] if isinstance(message.get("content"), list) for part in message["content"]
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]


class GlyphModel:
    """An `answer` for `OpenAIServer`: always right, and looks closer exactly when it must, in text or natively as it is asked."""

    def __init__(self, samples: Sequence[Sample], *, vision: VisionSpec | None = None) -> None:
        store = ImageStore()
        self._samples: dict[str, Sample] = {}
        for sample in samples:
            view = first_view(store, store.load(sample.images[0]), vision or VisionSpec(), scale=0.5)
            self._samples[image_hash(view.image)] = sample

    def __call__(self, request: Request) -> str | dict[str, Any]:
        shown = pictures(request.body)
        sample = self._samples[image_hash(shown[0])]
        native = "tools" in request.body
        if sample.meta["needs_original"] and len(shown) == 1:
            if not native:
                return f"<think>small</think>\n<tool_call>{LOOK}</tool_call>"
            function = {"name": "resize_image", "arguments": "{}"}
            call = {"id": f"id{request.index}", "type": "function", "function": function}
            return {"role": "assistant", "content": None, "reasoning_content": "small", "tool_calls": [call]}
        answer = str(sample.answer)
        return answer if native else f"<think>seen</think>\n<answer>{answer}</answer>"


def says(*messages: str | Mapping[str, Any]) -> Any:
    """An `answer` that says one message after another, the last for ever."""
    return lambda request: messages[min(request.index, len(messages) - 1)]


def calls(*wanted: tuple[str, Any], **more: Any) -> dict[str, Any]:
    """A message that calls tools: (name, arguments), the arguments as JSON, or as the text that they are."""
    uses = [
        {
            "id": f"c{place}",
            "type": "function",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for place, (name, given) in enumerate(wanted)
    ]
    return {"role": "assistant", "content": None, "tool_calls": uses, **more}
