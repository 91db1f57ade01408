"""The OpenAI SDK, for OpenAI and for any server that speaks its protocol: words and parameters go through as they are.

litellm would do, but it rewrites what it knows better (it takes `<think>…</think>` out of a reply, and `<thinking>` as well),
and what a model was asked to write must be seen as it wrote it. It is also lighter: nothing is imported for seconds.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httpx

from agentvision.chat.endpoint import NO_KEY, ChatModel, Prices, check_address
from agentvision.chat.errors import ChatSetupError, Fault

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OPENAI_KEY = "OPENAI_API_KEY"


def connect(
    model: str,
    *,
    api_base: str | None,
    api_key_env: str | None,
    prices: Prices | None,
    schemas: bool | None,
) -> ChatModel:
    """A model by its server's name for it. Without `api_base` the server is OpenAI's, whose prices are known.

    Raises `ChatSetupError` when a key is missing.
    """
    if api_base is not None:
        check_address(api_base)
    key_name = api_key_env or (OPENAI_KEY if api_base is None else None)
    key = NO_KEY if key_name is None else os.environ.get(key_name)
    if not key:
        other = "api_key_env names it" if api_key_env else "or name another variable with api_key_env"
        raise ChatSetupError(f"{model}: set {key_name} to its API key ({other}).", reason="no_key")
    if api_base is None and prices is None:
        from agentvision.chat.litellm_client import known_prices

        prices = known_prices(f"openai/{model}")

    async def send(request: Mapping[str, Any]) -> Mapping[str, Any]:
        body = {"model": model, **request}
        timeout_s = body.pop("timeout")
        if api_base is None:  # OpenAI's reasoning models know the new name alone, older servers the old one
            body["max_completion_tokens"] = body.pop("max_tokens")
        response = await _client(api_base, key).post(
            "/chat/completions", cast_to=httpx.Response, body=body, options={"timeout": timeout_s}
        )
        try:
            return response.json()
        except ValueError:
            raise Fault("malformed", "The body is no JSON.") from None

    return ChatModel(
        model=model,
        api_base=api_base,
        key_name=key_name,
        api_key=key,
        prices=prices,
        schemas=bool(schemas),
        seeds=True,
        send=send,
    )


@functools.cache
def _client(api_base: str | None, key: str) -> AsyncOpenAI:
    """One for each server; used on the network's loop alone, and its connections end with the process."""
    from openai import AsyncOpenAI

    return AsyncOpenAI(base_url=api_base, api_key=key, max_retries=0)
