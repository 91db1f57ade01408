"""One chat model of any provider, asked by name: for judges today, for the policies of an evaluation tomorrow.

`Chat.ask(messages) -> Reply`, from any event loop and any thread. What a network and a provider do is met here, so that
nobody above has to: deadlines, retries, a circuit breaker, rate limits, a ceiling on money. A reply is the model's own words
or there is none: everything else is a `ChatError` with a short `reason`. litellm speaks the providers' dialects, and only
`provider.py` knows it.
"""

from agentvision.chat.chat import Chat, Messages
from agentvision.chat.errors import ChatDown, ChatError, ChatFailed, ChatRefused, ChatSetupError, CostCeiling
from agentvision.chat.replies import Reply, Usage

__all__ = [
    "Chat",
    "ChatDown",
    "ChatError",
    "ChatFailed",
    "ChatRefused",
    "ChatSetupError",
    "CostCeiling",
    "Messages",
    "Reply",
    "Usage",
]
