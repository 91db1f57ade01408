"""What an inference engine is: exact ids in, exact ids and log-probs out, and weights that are taken whole or not at all.

Two sides. `Engine.sample` is the rollouts' side: one turn, independent of every other, batched by the engine as it likes.
`Control` is the trainer's side: stop, take new weights bucket by bucket, forget what was computed with the old ones, go on.
`sync` drives it, the same for an engine in this process and for a server. What an engine is told of an image is its hash;
pixels travel when it does not know them yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from agentvision.errors import AgentVisionError
from agentvision.policy import VersionSpan
from agentvision.types import Segment

if TYPE_CHECKING:
    from agentvision.images import ImageStore


class EngineError(AgentVisionError):
    """The engine cannot do what it was asked; what, where and how to mend it."""


class EngineLost(EngineError):
    """The engine is gone, or does not answer: the same turn may be asked of another."""


class BrokenNumbers(EngineError):
    """What was sampled has no probability: the weights have diverged, or the engine computes something else with them."""


class SyncError(EngineError):
    """Weights did not arrive as they were sent. The engine must not be sampled from until a later sync succeeds."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One turn to sample: the ledger so far, and how to draw.

    `session` is the same for all turns of an episode, `group` for the rollouts that share a prompt. `temperature` 0 is
    greedy; `top_k` 0 means all candidates. `banned_ids` must not be sampled, `stop_ids` end the turn and are part of it.
    """

    session: str
    group: str
    turn: int
    segments: tuple[Segment, ...]
    store: ImageStore
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int
    stop_ids: tuple[int, ...]
    banned_ids: tuple[int, ...]
    adapter: bool = False
    """With the adapter that the engine was brought last; else the model alone."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the engine said: `ids` (n) with the stop id, if any, and their `logprobs` (n) under what was sampled from.

    `prompt_tokens` counts the prompt in the trainer's stream (every token of an image); `cached_tokens` of them were
    not computed again, because an earlier request had the same prefix.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[VersionSpan, ...]
    prompt_tokens: int
    cached_tokens: int


class Control(Protocol):
    """The trainer's side of one engine. Every call has a deadline of its own; all raise `EngineError` when they fail."""

    async def sample_alone(self, ask: Ask) -> Sampled:
        """One turn of this very engine while it is paused, its caches reset: no other is sampled before `resume`."""
        ...

    async def pause(self) -> None:
        """Sample no further; requests in flight keep what they have said and wait."""
        ...

    async def resume(self) -> None: ...

    async def start_weight_update(self) -> None: ...

    async def update_weights(self, info: Mapping[str, Any]) -> None:
        """Take one bucket of tensors; `info` is JSON and says where they are."""
        ...

    async def finish_weight_update(self, version: int) -> None:
        """Put the tensors to use. From here on, what is sampled is said to be of this version."""
        ...

    async def call_worker(self, method: str, **kwargs: str) -> Sequence[Any]:
        """Call a method of every worker of the engine (vLLM's `collective_rpc`): its answers, one a worker."""
        ...

    async def trainer_host(self) -> str:
        """The address that this machine has on its way to the engine's."""
        ...

    async def reset_caches(self) -> None:
        """Forget prefixes, preprocessed images and their features. Raises `EngineError` when one cannot be forgotten."""
        ...

    async def version(self) -> str:
        """Of the weights, as the engine says: what the last `finish_weight_update` was told, else "default"."""
        ...


class Engine(Protocol):
    """What samples turns: one engine, or several behind one face."""

    async def sample(self, ask: Ask) -> Sampled:
        """Sample one turn. Raises `ValueError` for an impossible request, `EngineError` when it cannot be done."""
        ...

    async def release(self, session: str) -> None:
        """The episode has ended: stop what it still samples and forget where it was sampled."""
        ...

    def controls(self) -> Sequence[Control]:
        """The engines to bring new weights to, those that are alive."""
        ...

    async def close(self) -> None: ...
