"""litellm, and nothing else knows it: names, keys, prices and dialects of providers.

It is imported when the first model is set up (that takes seconds), with its fetch of prices over the network, its reading of
`.env` files, its logging and its own retries off.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

from agentvision.chat.endpoint import NO_KEY, ChatModel, Prices, check_address
from agentvision.chat.errors import ChatSetupError


def connect(
    model: str,
    *,
    api_base: str | None,
    api_key_env: str | None,
    prices: Prices | None,
    schemas: bool | None,
) -> ChatModel:
    """Look a model up. Raises `ChatSetupError` when its provider is unknown or its key is missing."""
    if api_base is not None:
        check_address(api_base)
    litellm = imported()
    try:
        _, provider, _, _ = litellm.get_llm_provider(model, api_base=api_base)
    except Exception:
        raise ChatSetupError(
            f"No provider is known for model={model!r}. Write provider/name, as in openai/gpt-4o; for a server of your own that "
            f"speaks the OpenAI protocol, openai/NAME and api_base.",
            reason="unknown_provider",
        ) from None
    key_name, key = _key(litellm, model, provider, api_base, api_key_env)

    async def send(request: Mapping[str, Any]) -> Mapping[str, Any]:
        # Without the last line a request with tools is looked through for those of litellm's own proxy, whose packages
        # are not installed.
        response = await litellm.acompletion(
            model=model,
            api_base=api_base,
            api_key=key,
            max_retries=0,
            num_retries=0,
            **{"no-log": True},  # there are no callbacks, and preparing for them costs as much as the request
            **request,
            **({"_skip_mcp_handler": True} if "tools" in request else {}),
        )
        return response.model_dump(warnings=False)

    return ChatModel(
        model=model,
        api_base=api_base,
        key_name=key_name,
        api_key=key,
        prices=prices or known_prices(model),
        schemas=bool(litellm.supports_response_schema(model)) if schemas is None else schemas,
        seeds="seed" in (litellm.get_supported_openai_params(model) or ()),
        send=send,
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


def known_prices(model: str) -> Prices | None:
    """By litellm's list; None for a model that is not in it."""
    try:
        info = imported().get_model_info(model)
    except Exception:  # litellm has no exception of its own for "not in the map"
        return None
    prompt, completion = info.get("input_cost_per_token"), info.get("output_cost_per_token")
    return None if prompt is None or completion is None else Prices(float(prompt), float(completion))


@functools.cache
def imported() -> Any:
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
