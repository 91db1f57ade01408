"""Why there is no reply: one exception for each thing that a caller can do about it, each with a short `reason`."""

from __future__ import annotations

from functools import partial

from agentvision.errors import AgentVisionError


class ChatError(AgentVisionError):
    """There is no reply. `reason` is a short name of why, fit for a metric."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:  # else it could not leave a worker process
        return partial(type(self), reason=self.reason), self.args


class ChatSetupError(ChatError):
    """It cannot be asked as it is set up (no key, no such provider, a ceiling without a price); nothing was sent."""


class ChatRefused(ChatError):
    """The provider will never answer this request: a bad key, model or request, a filter, no money left."""


class ChatFailed(ChatError):
    """Every attempt failed on the way; the reason is that of the last."""


class ChatDown(ChatError):
    """The provider has been failing for longer than callers are to wait, so nothing was sent."""


class CostCeiling(ChatError):
    """Asking could cost more than what is left below the ceiling, so nothing was sent."""


class Fault(Exception):
    """One attempt failed in a way that may pass: what the next one waits for, and whether the provider seems down."""

    def __init__(self, reason: str, detail: str, *, retry_after_s: float | None = None, down: bool = True) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after_s = retry_after_s
        self.down = down
