"""The routes of one vLLM server: what is asked there, and what it means when the answer is none.

`EngineLost` says that the server may be well later, or another may be asked; `EngineError` that no waiting mends it. Turns
go over the token-in, token-out route; the trainer's side over routes that vLLM has in its development mode alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentvision.engine import adapter
from agentvision.engine.part import BAN, FIRST_VERSION
from agentvision.engine.types import Ask, EngineError, EngineLost
from agentvision.engine.wire import Reply, Wire
from agentvision.seeds import seed_for
from agentvision.tokens import engine_ids

GENERATE = "/inference/v1/generate"
PAUSE, RESUME = "/pause?mode=abort&clear_cache=false", "/resume"
_EXACT_HINT = (
    "start the server with --enable-scale-out; without it only chat is offered, and nothing can be trained on that"
)
_ADAPTER_HINT = (
    "does not find the adapter that it was brought: start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its"
    " environment"
)
_CONTROL_HINT = (
    "start the server with VLLM_SERVER_DEV_MODE=1 in its environment, on loopback or a private network only: these routes"
    " ask for no key"
)


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """What a server offers. Not `exact`: chat alone, so a policy on it cannot be trained. Not `control`: no new weights."""

    url: str
    model: str
    source: str
    """The folder or hub id that it was started with."""
    max_model_len: int | None
    exact: bool
    control: bool


class Routes:
    """To be called on the network's loop. `offered` asks three times, each other call once."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        self.wire = Wire(url, api_key=api_key)
        self.url = self.wire.url

    # --- what it is -------------------------------------------------------------------------------------------------

    async def offered(self, timeout_s: float) -> tuple[EndpointInfo, str]:
        """What it offers, and the version of its weights. Raises `EngineLost` when it does not answer, `EngineError` for a
        bad key."""
        models = await self.wire.call("GET", "/v1/models", timeout_s=timeout_s)
        self._refuse_key(models)
        try:
            model = models.body["data"][0]
            name, longest = str(model["id"]), model.get("max_model_len")
            source = str(model.get("root") or name)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise EngineError(f"{self.url} does not say what model it serves: {models.problem}") from None
        exact = await self.wire.call("POST", GENERATE, body={}, timeout_s=timeout_s)
        control = await self.wire.call("GET", "/weight_info", timeout_s=timeout_s)
        version = str(control.body["weight_version"]) if control.status == 200 else FIRST_VERSION
        # A request without anything in it is refused by the route, where there is one.
        return EndpointInfo(self.url, name, source, longest, exact.status in (400, 422), control.status == 200), version

    async def health(self, timeout_s: float) -> None:
        """Raises unless the server's front is well."""
        health = await self.wire.call("GET", "/health", timeout_s=timeout_s)
        if health.status in (404, 405, 501):
            raise EngineError(
                f"{self.url} is no vLLM server: it has no /health (status {health.status}); look at the address"
            )
        if health.status != 200:
            raise EngineLost(f"{self.url} says that it is not well: {health.problem}")

    async def weights(self, timeout_s: float) -> str:
        reply = await self.wire.call("GET", "/weight_info", timeout_s=timeout_s)
        if reply.status != 200:
            raise EngineLost(f"{self.url} does not say what weights it has: {reply.problem}")
        return str(reply.body["weight_version"])

    async def is_paused(self, timeout_s: float) -> bool:
        reply = await self.wire.call("GET", "/is_paused", timeout_s=timeout_s)
        if reply.status != 200:
            raise EngineLost(f"{self.url} does not say whether it is paused: {reply.problem}")
        return bool(reply.body["is_paused"])

    # --- turns ------------------------------------------------------------------------------------------------------

    async def generate(
        self,
        ask: Ask,
        said: Sequence[int],
        pictures: Sequence[Mapping[str, str]],
        *,
        image_token_id: int,
        timeout_s: float,
    ) -> Reply:
        """What is left of a turn that has said so much; `pictures` are the request's, in their order."""
        body: dict[str, Any] = {
            "token_ids": [*engine_ids(ask.segments, image_token_id), *said],
            "return_token_ids": True,
            "sampling_params": {
                "temperature": ask.temperature,
                "top_p": ask.top_p,
                "top_k": ask.top_k,
                "max_tokens": ask.max_tokens - len(said),
                # What goes on after a pause must not draw again what the turn began with.
                "seed": (seed_for(ask.seed, len(said)) if said else ask.seed) % (1 << 63),
                "logprobs": 0,  # the sampled token's own
                "stop_token_ids": list(ask.stop_ids),
                "ignore_eos": True,  # the ledger's stop ids alone end a turn
                "detokenize": False,
                "logit_bias": {str(i): BAN for i in ask.banned_ids},
            },
        }
        if ask.adapter:
            body["model"] = adapter.NAME
        if pictures:
            body["content_parts"] = pictures
        # A session's name may hold anything, a header may not.
        session = {"X-Session-ID": hashlib.sha256(ask.session.encode()).hexdigest()[:32]}
        return await self.wire.call("POST", GENERATE, body=body, headers=session, timeout_s=timeout_s)

    def refused_turn(self, reply: Reply, ask: Ask) -> Exception:
        """What a status other than 200 says of a turn: a `ValueError` where the turn itself is refused."""
        self._refuse_key(reply)
        if reply.status in (404, 405, 501):
            hint = _ADAPTER_HINT if ask.adapter and reply.status == 404 else f"has no {GENERATE}: {_EXACT_HINT}"
            return EngineError(f"{self.url} {hint}")
        if reply.status in (408, 429) or reply.status >= 500:
            return EngineLost(f"{self.url} could not sample a turn: {reply.problem}")
        return ValueError(f"{self.url} refuses turn {ask.turn} of session {ask.session!r}: {reply.problem}")

    def _refuse_key(self, reply: Reply) -> None:
        if reply.status in (401, 403):
            raise EngineError(f"{self.url} refuses the key (status {reply.status}); set the server's api_key")

    # --- the trainer's side -----------------------------------------------------------------------------------------

    async def control(
        self, method: str, path: str, *, timeout_s: float, body: Mapping[str, Any] | None = None
    ) -> Reply:
        """A call that changes the server, or asks of it what only a trainer needs."""
        reply = await self.wire.call(method, path, body=body, timeout_s=timeout_s)
        if reply.status in (404, 405):
            raise EngineError(f"{self.url} has no {path.partition('?')[0]}: {_CONTROL_HINT}")
        if reply.status != 200:
            raise EngineError(f"{self.url}{path.partition('?')[0]} failed: {reply.problem}")
        return reply
