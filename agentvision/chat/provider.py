"""litellm, and nothing else knows it: names, keys, prices and dialects of providers, and what their failures mean.

It is imported when the first model is set up (that takes seconds), with its fetch of prices over the network, its reading of
`.env` files, its logging and its own retries off.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from agentvision.chat.errors import ChatError, ChatRefused, ChatSetupError, Fault

DETAIL_CHARS = 300
"""A provider's own words are cut to this length."""
NO_KEY = "none"
"""Sent to a server without a key, since the protocol's client wants one."""

_SECRET = re.compile(r"\b(?:sk|pk|rk|gsk|xai|key|AIza)[-_A-Za-z0-9*]{8,}|(?<=Bearer )\S+")

_WRAPPING = re.compile(r"^(?:(?:litellm\.)?[A-Za-z]*(?:Error|Exception|Timeout)(?: Error)?(?::| -) )+")
"""What litellm puts before a provider's own words."""


@dataclass(frozen=True)
class Prices:
    """US dollars a token."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        return prompt_tokens * self.prompt + completion_tokens * self.completion


@dataclass(frozen=True)
class Completion:
    """What a provider returned, before anybody judged it. No usage: it reported none."""

    text: str
    finish: str
    usage: tuple[int, int] | None


@dataclass(frozen=True)
class Endpoint:
    """A model behind an address. Never shows its key."""

    model: str
    provider: str
    api_base: str | None
    key_name: str | None  # of the variable that holds the key
    api_key: str | None = field(repr=False)
    prices: Prices | None
    schemas: bool  # whether it can be held to a JSON schema

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
        schema: Mapping[str, Any] | None,
        settings: Mapping[str, Any],
    ) -> Completion:
        """One attempt. Raises `Fault` for what may pass and `ChatError` for what will not."""
        if schema is not None:
            form = {"name": "reply", "schema": dict(schema), "strict": True}
            settings = {**settings, "response_format": {"type": "json_schema", "json_schema": form}}
        try:
            response = await _litellm().acompletion(
                model=self.model,
                messages=[dict(message) for message in messages],
                api_base=self.api_base,
                api_key=self.api_key,
                timeout=timeout_s,
                max_retries=0,
                num_retries=0,
                **{"no-log": True},  # there are no callbacks, and preparing for them costs as much as the request
                **settings,
            )
        except Exception as error:
            meaning = self._meaning(error)
        else:
            return self._read(response)
        raise meaning  # outside of the handler: litellm's exception, which may hold the key, is not chained to it

    def _read(self, response: Any) -> Completion:
        try:
            choice = response.choices[0]
            text, finish = choice.message.content, choice.finish_reason
            usage = getattr(response, "usage", None)
            tokens = (int(usage.prompt_tokens), int(usage.completion_tokens)) if usage else (0, 0)
        except (AttributeError, IndexError, TypeError, ValueError):
            raise Fault("malformed", "The body is no chat completion.") from None
        if text is not None and not isinstance(text, str):
            raise Fault("malformed", f"The message's content is a {type(text).__name__}.")
        return Completion(text or "", str(finish), tokens if any(tokens) else None)

    def _meaning(self, error: Exception) -> Fault | ChatError:
        """What a failure means for a caller; its words without secrets."""
        detail = self._clean(str(error))
        causes = _chain(error)
        status: int | None = getattr(error, "status_code", None)
        headers = getattr(error, "litellm_response_headers", None)
        headers = headers or getattr(getattr(error, "response", None), "headers", None)
        if any(isinstance(cause, ImportError) for cause in causes):
            return ChatSetupError(f"{self.name} needs a package that is not installed: {detail}", reason="no_package")
        if status in (None, 500) and not headers:  # no failure that the provider tells of
            if any(isinstance(cause, OSError | httpx.TransportError) for cause in causes):
                return Fault("connection", f"{self.name}: {detail}")
            if status == 500:
                return Fault("malformed", f"{self.name}: {detail}")
        if status is None:
            detail = f"{type(error).__name__}: {detail}"
            return ChatRefused(f"{self.name}: litellm cannot send this: {detail}", reason="unsendable")
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


def connect(
    model: str,
    *,
    api_base: str | None,
    api_key_env: str | None,
    prices: Prices | None,
    schemas: bool | None,
) -> Endpoint:
    """Look a model up. Raises `ChatSetupError` when its provider is unknown or its key is missing."""
    if api_base is not None:
        address = urlsplit(api_base)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ChatSetupError(f"api_base={api_base!r}: write it as http://host:port/v1.", reason="bad_setting")
        if "@" in address.netloc:
            raise ChatSetupError(
                "api_base holds a password; name the variable of a key with api_key_env.", reason="bad_setting"
            )
    litellm = _litellm()
    try:
        _, provider, _, _ = litellm.get_llm_provider(model, api_base=api_base)
    except Exception:
        raise ChatSetupError(
            f"No provider is known for model={model!r}. Write provider/name, as in openai/gpt-4o; for a server of your own that "
            f"speaks the OpenAI protocol, openai/NAME and api_base.",
            reason="unknown_provider",
        ) from None
    key_name, key = _key(litellm, model, provider, api_base, api_key_env)
    return Endpoint(
        model=model,
        provider=provider,
        api_base=api_base,
        key_name=key_name,
        api_key=key,
        prices=prices or _prices(litellm, model),
        schemas=bool(litellm.supports_response_schema(model)) if schemas is None else schemas,
    )


def _key(
    litellm: Any, model: str, provider: str, api_base: str | None, api_key_env: str | None
) -> tuple[str | None, str | None]:
    """The variable that holds the key, and the key where it is not litellm that looks for it."""
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise ChatSetupError(f"{model}: set {api_key_env} to its API key (api_key_env names it).", reason="no_key")
        return api_key_env, key
    if provider == "openai" and api_base is not None:
        return None, NO_KEY  # a server of the user's own: OpenAI's key is none of its business
    missing = litellm.validate_environment(model, api_base=api_base).get("missing_keys") or []
    missing = [name for name in missing if name.endswith(("_API_KEY", "_API_TOKEN"))]  # others have further sources
    if missing:
        raise ChatSetupError(
            f"{model}: set {' or '.join(missing)} to its API key, or name another variable with api_key_env.",
            reason="no_key",
        )
    return None, None


def _prices(litellm: Any, model: str) -> Prices | None:
    try:
        info = litellm.get_model_info(model)
    except Exception:  # litellm has no exception of its own for "not in the map"
        return None
    prompt, completion = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    return None if prompt is None or completion is None else Prices(float(prompt), float(completion))


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


@functools.cache
def _litellm() -> Any:
    """litellm, imported with its habits off."""
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    try:
        import litellm
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    litellm.suppress_debug_info = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return litellm
