"""A policy at any provider that litellm knows (Anthropic, Google, …); for evaluation and embedding.

litellm knows each provider's dialect and prices. It also takes what a model thinks at the start of its reply (`<think>`, and
other spellings of it) out of the text; it is put back as the turn's thinking.
"""

from __future__ import annotations

from typing import ClassVar

from agentvision.chat import Client
from agentvision.policies._chat import ChatPolicy


class LitellmPolicy(ChatPolicy):
    """`model` is litellm's name of it: `anthropic/claude-sonnet-4-5`, `gemini/gemini-2.5-flash`. See `ChatPolicy`."""

    client: ClassVar[Client] = "litellm"
