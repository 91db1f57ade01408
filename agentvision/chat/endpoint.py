"""A model behind an address: one attempt at a reply, and what a failure of it means.

Two clients send it: litellm (`litellm_client.py`), which speaks every provider's dialect, and the OpenAI SDK
(`openai_client.py`), which changes no word. Both raise the SDK's exceptions or children of them, so that failures have one
meaning, which is found here; and nothing that leaves here holds a key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import httpx

from agentvision.chat.errors import ChatError, ChatRefused, ChatSetupError, Fault
from agentvision.chat.replies import ToolUse

DETAIL_CHARS = 300
"""A provider's own words are cut to this length."""
NO_KEY = "none"
"""Sent to a server without a key, since the protocol's client wants one."""

_SECRET = re.compile(r"\b(?:sk|pk|rk|gsk|xai|key|AIza)[-_A-Za-z0-9*]{8,}|(?<=Bearer )\S+")

_WRAPPING = re.compile(r"^(?:(?:litellm\.)?[A-Za-z]*(?:Error|Exception|Timeout)(?: Error)?(?::| -) )+")
"""What litellm puts before a provider's own words."""

Send: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""From a request's parameters (messages, settings, `timeout` in seconds) to the body of the reply, both as the protocol has
them."""


@dataclass(frozen=True)
class Prices:
    """US dollars a token."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        return prompt_tokens * self.prompt + completion_tokens * self.completion


@dataclass(frozen=True)
class Completion:
    """What a provider returned, before anybody judged it. No usage: it reported none.

    `thinking` is what some providers want back, signed, with the call that it led to.
    """

    text: str
    finish: str
    usage: tuple[int, int] | None
    reasoning: str = ""
    calls: tuple[ToolUse, ...] = ()
    thinking: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class ChatModel:
    """A model behind an address. Never shows its key."""

    model: str
    api_base: str | None
    key_name: str | None  # of the variable that holds the key
    api_key: str | None = field(repr=False)
    prices: Prices | None
    schemas: bool  # whether it can be held to a JSON schema
    seeds: bool  # whether it takes a seed
    send: Send = field(repr=False)

    @property
    def name(self) -> str:
        """For people: the model, and the host of an address of the user's own."""
        host = urlsplit(self.api_base).netloc if self.api_base else ""
        return f"{self.model} at {host}" if host else self.model

    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        timeout_s: float,
        settings: Mapping[str, Any],
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Completion:
        """One attempt. Raises `Fault` for what may pass and `ChatError` for what will not."""
        request = {"messages": [dict(message) for message in messages], "timeout": timeout_s, **settings}
        if schema is not None:
            form = {"name": "reply", "schema": dict(schema), "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": form}
        if tools:
            request["tools"] = [dict(tool) for tool in tools]
        try:
            body = await self.send(request)
        except Exception as error:
            meaning = self._meaning(error)
        else:
            return _read(body)
        raise meaning  # outside of the handler: a client's exception, which may hold the key, is not chained to it

    def _meaning(self, error: Exception) -> Fault | ChatError:
        """What a failure means for a caller; its words without secrets."""
        detail = self._clean(_words(error))
        causes = _chain(error)
        status: int | None = getattr(error, "status_code", None)
        headers = getattr(error, "litellm_response_headers", None)
        headers = headers or getattr(getattr(error, "response", None), "headers", None)
        if isinstance(error, Fault):
            return Fault(error.reason, f"{self.name}: {detail}")
        if any(isinstance(cause, ImportError) for cause in causes):
            return ChatSetupError(f"{self.name} needs a package that is not installed: {detail}", reason="no_package")
        if status in (None, 500) and not headers:  # no failure that the provider tells of
            if any(isinstance(cause, OSError | httpx.TransportError) for cause in causes):
                return Fault("connection", f"{self.name}: {detail}")
            if status == 500:
                return Fault("malformed", f"{self.name}: {detail}")
        if status is None:
            detail = f"{type(error).__name__}: {detail}"
            return ChatRefused(f"{self.name}: this cannot be sent: {detail}", reason="unsendable")
        if status == 429 and not any(getattr(cause, "code", None) == "insufficient_quota" for cause in causes):
            return Fault("rate_limited", f"{self.name}: {detail}", retry_after_s=_retry_after(headers), down=False)
        if status == 408:
            return Fault("timeout", f"{self.name}: {detail}")
        if status >= 500:
            return Fault("server_error", f"{self.name}: {detail}", retry_after_s=_retry_after(headers))
        return self._refused(status, detail)

    def _refused(self, status: int, detail: str) -> ChatRefused:
        key = f"the key in {self.key_name}" if self.key_name else "a key (name its variable with api_key_env)"
        reason, fix = {
            401: ("unauthorised", f"It wants {key}."),
            402: ("no_credit", "Add credit to the account."),
            403: ("forbidden", f"It does not allow this with {key}."),
            404: ("not_found", "Check the model's name and api_base (an OpenAI-compatible one usually ends in /v1)."),
            429: ("no_credit", "Add credit to the account, or raise its quota."),
        }.get(status, ("bad_request", "Change what it complains about: retrying cannot help."))
        return ChatRefused(f"{self.name} refused the request ({status}). {fix} It said: {detail}", reason=reason)

    def _clean(self, text: str) -> str:
        if self.api_key and self.api_key != NO_KEY:
            text = text.replace(self.api_key, "***")
        text = _SECRET.sub("***", _WRAPPING.sub("", " ".join(text.split())))
        return text if len(text) <= DETAIL_CHARS else text[:DETAIL_CHARS] + " …"


def check_address(api_base: str) -> None:
    """Raise `ChatSetupError` for what is no address of a server."""
    address = urlsplit(api_base)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ChatSetupError(f"api_base={api_base!r}: write it as http://host:port/v1.", reason="bad_setting")
    if "@" in address.netloc:
        raise ChatSetupError(
            "api_base holds a password; name the variable of a key with api_key_env.", reason="bad_setting"
        )


def _read(body: Mapping[str, Any]) -> Completion:
    """A body of the protocol. What a model wrote is never a fault, be it no JSON or nothing; another shape is one."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content, usage = message.get("content"), body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        calls = tuple(_tool_use(call) for call in message.get("tool_calls") or ())
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise Fault("malformed", "The body is no chat completion.") from None
    if content is not None and not isinstance(content, str):
        raise Fault("malformed", f"The message's content is a {type(content).__name__}.")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return Completion(
        text=content or _refusal(message),
        finish=str(choice.get("finish_reason")),
        usage=tokens if any(tokens) else None,
        reasoning=reasoning if isinstance(reasoning, str) else "",
        calls=calls,
        thinking=tuple(message.get("thinking_blocks") or ()),
    )


def _words(error: Exception) -> str:
    """The provider's own, where it sent any."""
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, Mapping) else None
    return said if isinstance(said, str) and said else str(error)


def _tool_use(call: Mapping[str, Any]) -> ToolUse:
    function = call["function"]
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else "" if arguments is None else json.dumps(arguments)
    return ToolUse(name=str(function.get("name") or ""), arguments=text, raw=dict(call))


def _refusal(message: Mapping[str, Any]) -> str:
    """The words with which a model declines, which stand beside the content (litellm moves them)."""
    words = message.get("refusal") or (message.get("provider_specific_fields") or {}).get("refusal")
    return words if isinstance(words, str) else ""


def _retry_after(headers: Mapping[str, str] | None) -> float | None:
    """`Retry-After` in seconds, from a number or a date."""
    value = (headers or {}).get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = ((when if when.tzinfo else when.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _chain(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes
