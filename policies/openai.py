"""A policy at OpenAI, or at any server that speaks its protocol, by the OpenAI SDK; for evaluation and embedding.

Words go through as they are, so the grammar of turns is read exactly as the model wrote it.
"""

from __future__ import annotations

from typing import ClassVar

from agentvision.chat import Client
from agentvision.policies._chat import ChatPolicy


class OpenAIPolicy(ChatPolicy):
    """`model` is the server's name of it: `gpt-4o`, or with `api_base` what your server calls it. See `ChatPolicy`."""

    client: ClassVar[Client] = "openai"
