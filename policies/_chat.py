"""A policy whose model is asked over a network: messages in, words out. Not trainable, since nobody tells the exact ids.

What networks and providers do (deadlines, retries, limits, money) is `agentvision.chat`'s business, and a turn without a reply
raises its `ChatError`. This file sets the model up; `_chat_messages` writes what is sent, `_chat_turn` reads what comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import JsonValue

from agentvision.chat import Chat, ChatRefused, Client, Reply
from agentvision.policies._chat_messages import to_wire
from agentvision.policies._chat_turn import native_call, turn_text
from agentvision.policies._data_urls import DataUrls, ImageFormat
from agentvision.policy import Completion, Request
from agentvision.recipe.parts import NonNegativeFloat, PositiveFloat, PositiveInt
from agentvision.seeds import seed_for
from agentvision.tokens import Codec

SamplingName = Literal["temperature", "top_p", "top_k", "seed"]


class ChatPolicy:
    """A chat model that completes turns; each argument but `model` is an option of the recipe's `policy`.

    Args:
        model: its name. By default the recipe's `model.path`.
        api_base: address of a server of your own, such as `http://localhost:8000/v1`.
        api_key_env: the variable that holds the key; without, the provider's usual one (and none for `api_base`).
        tools: how tools are called: `text`, as the recipe's protocol says and trained models do; or `native`, by the
            provider's own interface, for models that are tuned to it.
        detail: `low`, `high` or `auto` for each image, where the provider has such a thing.
        image_format: how images are sent. `png` loses nothing, `jpeg` is smaller.
        drop_params: settings of sampling that the model refuses, and that are not sent.
        call_timeout_s: deadline of one request.
        attempts: requests for one turn, where one fails and another may not.
        patience_s: how long turns wait for a provider that is down before they fail at once.
        concurrency: requests at a time.
        requests_per_minute, tokens_per_minute: limits to keep below.
        max_cost_usd: what may be spent; then turns fail.
        prices: US dollars a million prompt and reply tokens, for models whose price litellm does not know.
        settings: further parameters of each request: `reasoning_effort`, `parallel_tool_calls`, …

    Raises `ChatSetupError` for what would make every turn fail. Safe in threads and across event loops.
    """

    client: ClassVar[Client]
    trainable = False
    version = 0

    def __init__(
        self,
        model: str,
        *,
        api_base: str | None = None,
        api_key_env: str | None = None,
        tools: Literal["text", "native"] = "text",
        detail: Literal["low", "high", "auto"] | None = None,
        image_format: ImageFormat = "png",
        drop_params: tuple[SamplingName, ...] = (),
        call_timeout_s: PositiveFloat = 120.0,
        attempts: PositiveInt = 4,
        patience_s: PositiveFloat = 30.0,
        concurrency: PositiveInt = 64,
        requests_per_minute: PositiveFloat | None = None,
        tokens_per_minute: PositiveFloat | None = None,
        max_cost_usd: PositiveFloat | None = None,
        prices: tuple[NonNegativeFloat, NonNegativeFloat] | None = None,
        settings: dict[str, JsonValue] | None = None,
    ) -> None:
        self.codec: Codec | None = None
        self.native_tools = tools == "native"
        self.chat = Chat(
            model,
            client=self.client,
            api_base=api_base,
            api_key_env=api_key_env,
            temperature=None,  # of each request
            timeout_s=call_timeout_s,
            attempts=attempts,
            patience_s=patience_s,
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            max_cost_usd=max_cost_usd,
            prices=prices,
            settings=settings,
        )
        self._dropped = frozenset(drop_params)
        self._urls = DataUrls(image_format)
        self._detail: dict[str, str] = {} if detail is None else {"detail": detail}
        self._calls: dict[str, dict[tuple[int, str], Mapping[str, Any]]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.chat!r})"

    @classmethod
    def check(cls, **options: Any) -> None:
        """Raise `ChatSetupError` for what would make every turn fail, such as a missing key. Nothing is asked."""
        cls(**options)

    async def complete(self, request: Request) -> Completion:
        """The model's turn. Raises `ChatError`.

        Nothing but an answer of the provider's is a turn: a filter's silence is no fault of the model, so it raises
        `ChatRefused`. What the model itself says is one, be it a refusal, nothing, or a call that is no JSON.
        """
        native = self.native_tools and bool(request.tools)
        said = self._calls.setdefault(request.session, {}) if native else {}
        images = {view.index: await self._image(request, view.image) for view in request.views}
        try:
            reply = await self.chat.ask(
                to_wire(request.messages, images, native=native, calls=said),
                tools=request.tools if native else (),
                max_tokens=request.sampling.max_tokens,
                settings=self._sampling(request),
                may_be_empty=True,
            )
        except ChatRefused as error:
            if native and error.reason in ("bad_request", "unsendable"):
                hint = " Where it cannot call tools, set policy.options.tools: text."
                raise ChatRefused(f"{error}{hint}", reason=error.reason) from None
            raise
        if reply.finish == "content_filter":
            raise ChatRefused(
                f"{self.chat.model}: a content filter of the provider cut the turn short.", reason="filtered"
            )
        text = turn_text(reply, native=native)
        if native and reply.calls:
            said[len(request.messages), text] = native_call(reply)
        return Completion(text=text, ended=reply.finish != "length", usage=_usage(reply))

    async def release(self, session: str) -> None:
        """Forget the calls of an episode in the provider's own words."""
        self._calls.pop(session, None)

    async def close(self) -> None:
        """Forget the images. Connections are shared by all policies and end with the process."""
        self._urls.clear()

    async def _image(self, request: Request, key: str) -> dict[str, Any]:
        url = await self._urls.of(request.store, key)
        return {"type": "image_url", "image_url": {"url": url, **self._detail}}

    def _sampling(self, request: Request) -> dict[str, Any]:
        """What differs from the protocol's defaults. Greedy turns draw nothing, so they need no seed."""
        sampling = request.sampling
        values: dict[str, Any] = {"temperature": sampling.temperature}
        if sampling.top_p < 1:
            values["top_p"] = sampling.top_p
        if sampling.top_k > 0:
            values["top_k"] = sampling.top_k
        if sampling.temperature > 0 and self.chat.seeds:
            values["seed"] = seed_for(sampling.seed, request.turn) % 2**31
        return {name: value for name, value in values.items() if name not in self._dropped}


def _usage(reply: Reply) -> dict[str, float]:
    """What is known of a turn's cost, and how many of its calls were not carried out."""
    usage: dict[str, float] = {}
    if reply.prompt_tokens or reply.completion_tokens:
        usage |= {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    if reply.cost_usd is not None:
        usage["cost_usd"] = reply.cost_usd
    if len(reply.calls) > 1:
        usage["calls_dropped"] = len(reply.calls) - 1
    return usage
