"""One chat model of any provider, asked by name: for judges and for policies.

`Chat.ask(messages) -> Reply`, from any event loop and any thread. What a network and a provider do is met here, so that
nobody above has to: deadlines, retries, a circuit breaker, rate limits, a ceiling on money. A reply is the model's own words
or there is none: everything else is a `ChatError` with a short `reason`. litellm speaks the providers' dialects, the OpenAI SDK
that of OpenAI's own and of compatible servers; what surrounds a request is the same for both.
"""

from agentvision.chat.chat import Chat, Client, Messages
from agentvision.chat.errors import ChatDown, ChatError, ChatFailed, ChatRefused, ChatSetupError, CostCeiling
from agentvision.chat.replies import Reply, ToolUse, Usage

__all__ = [
    "Chat",
    "ChatDown",
    "ChatError",
    "ChatFailed",
    "ChatRefused",
    "ChatSetupError",
    "Client",
    "CostCeiling",
    "Messages",
    "Reply",
    "ToolUse",
    "Usage",
]
