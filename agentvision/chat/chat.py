"""One call, from the question to the reply: slot → rates → breaker → money → attempt, and again after a fault."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import stamina

from agentvision.chat import litellm_client, openai_client
from agentvision.chat.breaker import Breaker
from agentvision.chat.endpoint import Completion, Prices
from agentvision.chat.errors import ChatError, ChatFailed, ChatRefused, ChatSetupError, Fault
from agentvision.chat.limits import Budget, Rate, Taken
from agentvision.chat.network import on_network
from agentvision.chat.replies import Reply, Usage

Messages = Sequence[Mapping[str, Any]]
"""As the OpenAI protocol has them: role and content, the content a text or a list of parts."""

BACKOFF_S = 0.25
"""Before the second attempt, and as jitter of each; doubled with each further one, up to `MAX_WAIT_S`."""
MAX_WAIT_S = 20.0
"""The longest wait of this kind. One that the provider asks for (`Retry-After`) is cut at `patience_s`."""
BYTES_PER_TOKEN = 3.0
IMAGE_TOKENS = 1500.0
"""Estimates on the safe side, for rates and the ceiling; corrected by what the provider reports."""

Client: TypeAlias = Literal["litellm", "openai"]
_CONNECT = {"litellm": litellm_client.connect, "openai": openai_client.connect}

_RESERVED = {"model", "messages", "api_base", "base_url", "api_key", "temperature", "max_tokens", "timeout"}
_RESERVED |= {"max_retries", "num_retries", "response_format", "stream", "n", "tools"}


@dataclass(frozen=True)
class _Question:
    """What one call asks. `tokens` is the guess of what its prompt costs, `max_tokens` what its reply may."""

    messages: Messages
    settings: Mapping[str, Any]
    schema: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]]
    may_be_empty: bool
    max_tokens: int
    tokens: float


class Chat:
    """A chat model by litellm's name of it, as `openai/gpt-4o`; a server of one's own is `openai/NAME` with `api_base`.

    Args:
        client: `openai` asks OpenAI, or the server at `api_base`, without litellm; `model` is then that server's name of it.
        api_base: address of an OpenAI-compatible server, or of a gateway.
        api_key_env: the variable that holds the key; without, the provider's usual one (and none for `api_base`).
        temperature: not sent when None, for models that refuse it.
        max_tokens: of a reply.
        timeout_s: of one attempt, from the request to the body's last byte.
        attempts: of one call.
        patience_s: how long a provider may fail before callers are told at once.
        concurrency: attempts in flight at a time.
        requests_per_minute, tokens_per_minute: limits to keep below, counted over any 60 s.
        max_cost_usd: no request is sent that could take the sum above it.
        prices: US dollars a million prompt and completion tokens, for models that litellm has no price of.
        json_schema: whether the model can be held to a schema; None: as litellm says.
        settings: further parameters of the request (`top_p`, `seed`, `reasoning_effort` …).

    Raises `ChatSetupError` for what would make every call fail. Safe in threads and across event loops.
    """

    def __init__(
        self,
        model: str,
        *,
        client: Client = "litellm",
        api_base: str | None = None,
        api_key_env: str | None = None,
        temperature: float | None = 0.0,
        max_tokens: int = 1024,
        timeout_s: float = 30.0,
        attempts: int = 4,
        patience_s: float = 30.0,
        concurrency: int = 64,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_cost_usd: float | None = None,
        prices: Sequence[float] | None = None,
        json_schema: bool | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        numbers = {"max_tokens": max_tokens, "attempts": attempts, "concurrency": concurrency, "timeout_s": timeout_s}
        numbers |= {"patience_s": patience_s, "max_cost_usd": max_cost_usd}
        numbers |= {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        for name, value in numbers.items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ChatSetupError(f"{name}={value!r}: must be above 0.", reason="bad_setting")
        if prices is not None and (len(prices) != 2 or min(prices) < 0):
            raise ChatSetupError(
                f"prices={prices!r}: two numbers, US dollars a million prompt and completion tokens.",
                reason="bad_setting",
            )
        if reserved := _RESERVED.intersection(settings or {}):
            names = ", ".join(sorted(reserved))
            raise ChatSetupError(
                f"settings: {names}: set by this program, or by a setting of its own.", reason="bad_setting"
            )
        given = None if prices is None else Prices(prices[0] / 1e6, prices[1] / 1e6)
        self._endpoint = _CONNECT[client](
            model, api_base=api_base, api_key_env=api_key_env, prices=given, schemas=json_schema
        )
        if max_cost_usd is not None and self._endpoint.prices is None:
            raise ChatSetupError(
                f"max_cost_usd={max_cost_usd!r}: no price is known for {model}, so the ceiling could not be kept. Give prices "
                "(US dollars a million prompt and completion tokens; [0, 0] for a server of your own).",
                reason="unknown_price",
            )
        self.model = model
        self.max_tokens = max_tokens
        self.timeout_s = timeout_s
        self.attempts = attempts
        self.patience_s = patience_s
        self._settings = {**({} if temperature is None else {"temperature": temperature}), **(settings or {})}
        # Bound to the network's loop when first waited for; nothing here is touched by a caller's.
        self._slots = asyncio.Semaphore(concurrency)
        self._requests = None if requests_per_minute is None else Rate(requests_per_minute)
        self._tokens = None if tokens_per_minute is None else Rate(tokens_per_minute)
        self._breaker = Breaker(self._endpoint.name, patience_s)
        self._budget = Budget(max_cost_usd)
        self._retrying = stamina.AsyncRetryingCaller(
            attempts=attempts, timeout=None, wait_initial=BACKOFF_S, wait_jitter=BACKOFF_S, wait_max=MAX_WAIT_S
        )
        self._counts: dict[str, Any] = {}
        self._faults: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Chat({self._endpoint.name!r})"

    @property
    def usage(self) -> Usage:
        """Counts so far; what happened in between is the difference of two."""
        return Usage(**self._counts, faults=dict(self._faults), failures=dict(self._failures))

    @property
    def priced(self) -> bool:
        """Whether the cost of a reply is known."""
        return self._endpoint.prices is not None

    @property
    def seeds(self) -> bool:
        """Whether the model takes a seed."""
        return self._endpoint.seeds

    async def ask(
        self,
        messages: Messages,
        *,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        max_tokens: int | None = None,
        settings: Mapping[str, Any] | None = None,
        may_be_empty: bool = False,
    ) -> Reply:
        """The model's reply. Raises `ChatError`, with its reason.

        A `schema` holds the reply to it where the provider can (`Reply.structured`); elsewhere it is left out, so the messages
        should say what form is wanted. `tools` are offered by the protocol's own means (`Reply.calls`). `max_tokens` replaces
        the chat's; `settings` are of this request alone, and the chat's own come first. Where a reply `may_be_empty`, one that
        says nothing counts, be it cut off, and is not asked for again.
        """
        question = _Question(
            messages,
            settings={**(settings or {}), **self._settings, "max_tokens": max_tokens or self.max_tokens},
            schema=schema if self._endpoint.schemas else None,
            tools=tools,
            may_be_empty=may_be_empty,
            max_tokens=max_tokens or self.max_tokens,
            tokens=_estimate(messages, tools),
        )
        return await on_network(self._ask(question))

    async def _ask(self, question: _Question) -> Reply:
        began = time.monotonic()
        tried = 0

        async def attempt() -> Completion:
            nonlocal tried
            tried += 1
            return await self._attempt(question, again=tried > 1)

        self._count(calls=1)
        try:
            completion = await self._retrying(self._wait_s, attempt)
        except ChatError as error:
            self._failures[error.reason] += 1
            raise
        except Fault as fault:
            self._failures[fault.reason] += 1
            raise ChatFailed(f"{fault} (after {tried} attempts)", reason=fault.reason) from None
        finally:
            self._count(seconds=time.monotonic() - began)
        self._count(replies=1)
        prompt, words = completion.usage or (0, 0)
        return Reply(
            text=completion.text,
            prompt_tokens=prompt,
            completion_tokens=words,
            cost_usd=self._cost(completion),
            seconds=time.monotonic() - began,
            attempts=tried,
            finish=completion.finish,
            structured=question.schema is not None,
            reasoning=completion.reasoning,
            calls=completion.calls,
            thinking=completion.thinking,
        )

    async def _attempt(self, question: _Question, *, again: bool) -> Completion:
        async with self._slots:
            taken = await self._in_rates(question.tokens + question.max_tokens)
            async with self._budget.hold(self._most_usd(question)), self._breaker.attempt(again=again):
                self._count(attempts=1, retries=int(again))
                try:
                    completion = await self._complete(question)
                    self._pay(completion, question)
                    if self._tokens and taken and completion.usage:
                        self._tokens.correct(taken, sum(completion.usage))
                    return self._worded(completion, question)
                except Fault as fault:
                    self._faults[fault.reason] += 1
                    raise

    async def _in_rates(self, tokens: float) -> Taken | None:
        """Wait until both rates allow it, or until it has no use."""
        taken = await self._tokens.take(tokens, check=self._breaker.check) if self._tokens else None
        if self._requests:
            await self._requests.take(1, check=self._breaker.check)
        return taken

    async def _complete(self, question: _Question) -> Completion:
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._endpoint.complete(
                    question.messages,
                    timeout_s=self.timeout_s,
                    settings=question.settings,
                    schema=question.schema,
                    tools=question.tools,
                )
        except TimeoutError:
            raise Fault("timeout", f"{self._endpoint.name}: no whole reply within {self.timeout_s:g} s.") from None

    def _worded(self, completion: Completion, question: _Question) -> Completion:
        """The completion, if it says something."""
        if completion.text.strip() or completion.calls:
            return completion
        name = self._endpoint.name
        if completion.finish == "content_filter":
            raise ChatRefused(f"{name}: a content filter of the provider kept the reply.", reason="filtered")
        if question.may_be_empty:
            return completion
        if completion.finish == "length":
            raise ChatRefused(
                f"{name} used up max_tokens={question.max_tokens} before it said anything. Raise max_tokens.",
                reason="cut_off",
            )
        raise Fault("empty", f"{name}: the reply is empty.", down=False)

    def _most_usd(self, question: _Question) -> float:
        prices = self._endpoint.prices
        return prices.cost(question.tokens, question.max_tokens) if prices else 0.0

    def _cost(self, completion: Completion) -> float | None:
        prices = self._endpoint.prices
        return None if prices is None or completion.usage is None else prices.cost(*completion.usage)

    def _pay(self, completion: Completion, question: _Question) -> None:
        """Count what a completion took, be it of use or not; without a report of usage the ceiling assumes the most."""
        cost = self._cost(completion)
        self._budget.spent_usd += self._most_usd(question) if cost is None else cost
        prompt, words = completion.usage or (0, 0)
        self._count(prompt_tokens=prompt, completion_tokens=words, cost_usd=cost or 0.0, unpriced=int(cost is None))

    def _wait_s(self, error: Exception) -> bool | float:
        """Whether to try again, and after how long where the provider said so (never sooner, rather a little later)."""
        if not isinstance(error, Fault):
            return False
        if error.retry_after_s is None:
            return True  # stamina's: exponential, with jitter
        return min(error.retry_after_s, self.patience_s) + random.uniform(0.0, BACKOFF_S)

    def _count(self, **more: float) -> None:
        for name, value in more.items():
            self._counts[name] = self._counts.get(name, 0) + value


def _estimate(messages: Messages, tools: Sequence[Mapping[str, Any]]) -> float:
    """How many tokens the messages may be; images are counted, not measured."""
    tokens = 8.0 + sum(len(json.dumps(tool)) for tool in tools) / BYTES_PER_TOKEN
    for message in messages:
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            text = part.get("text")
            tokens += 4 + (
                len(text.encode(errors="replace")) / BYTES_PER_TOKEN if isinstance(text, str) else IMAGE_TOKENS
            )
    return tokens


class _NoRetryLines(logging.Filter):
    """stamina logs a warning for each retry; here they are counted instead (`Usage.faults`)."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(getattr(record, "stamina.caused_by", "")).startswith("Fault(")


logging.getLogger("stamina").addFilter(_NoRetryLines())
