"""The policy's side of an episode: one request in, one completion out.

A policy is stateless to its callers: each request carries the whole conversation (messages, views and, where the policy
deals in tokens, the ledger's segments). What it keeps between requests (KV caches, connections) is its own affair, keyed
by `Request.session`, and only ever a matter of speed. `trainable` says whether ids and log-probs are exact; training
refuses a policy that says no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from agentvision.types import Message, Segment, TextSegment, View

if TYPE_CHECKING:
    from torch import nn

    from agentvision.images import ImageStore
    from agentvision.tokens import Codec


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample one turn. `temperature` 0 is greedy. Training needs top_p 1 and top_k 0 (others bias the ratio)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    seed: int = 0
    """Each turn draws from its own stream, seeded by (seed, turn), so that a rollout does not depend on its batch."""


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to complete.

    `session` is the same for all turns of an episode; `group` the same for the rollouts that share a prompt.
    `segments` is the ledger so far (empty when the policy has no codec). `tools` are the JSON schemas on offer, for
    policies that have a native tool interface.
    """

    session: str
    group: str
    messages: tuple[Message, ...]
    views: tuple[View, ...]
    segments: tuple[Segment, ...]
    store: ImageStore
    sampling: SamplingParams
    turn: int = 0
    tools: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Ids `start` (included) to `end` (excluded) of a turn were sampled by the weights of this version."""

    version: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy said. `ids` and `logprobs` are empty where the policy deals in text alone.

    `text` is the ids decoded without special tokens. `ended` is False when the turn hit its token limit.
    `ids` includes the end-of-turn token that was sampled, if any. `versions` cover the ids one after another; more than
    one where the weights changed under the turn, none (all is of version 0) where they never change. `usage` is what
    others counted: `prompt_tokens`, `completion_tokens`, `cost_usd`, each only where it is known.
    """

    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    ended: bool = True
    versions: tuple[VersionSpan, ...] = ()
    usage: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at = 0
        for span in self.versions:
            if not at == span.start < span.end:
                raise ValueError(f"versions of a turn follow one another and hold a token at least: {self.versions!r}")
            at = span.end
        if self.versions and at != len(self.ids):
            raise ValueError(f"the versions of a turn cover its {len(self.ids)} ids, not {at}: {self.versions!r}")

    @property
    def segments(self) -> tuple[TextSegment, ...]:
        """What the ledger gains: a sampled segment a version, none where there are no ids."""
        if len(self.versions) < 2:
            version = self.versions[0].version if self.versions else 0
            return (TextSegment(self.ids, True, self.logprobs, version),) if self.ids else ()
        return tuple(
            TextSegment(
                self.ids[s.start : s.end], sampled=True, logprobs=self.logprobs[s.start : s.end], version=s.version
            )
            for s in self.versions
        )


@runtime_checkable
class Policy(Protocol):
    """What completes turns. Implementations live in `policies/`, one file each."""

    trainable: bool
    """Whether ids and log-probs are exactly what was sampled."""
    codec: Codec | None
    """The tokenizer's side (None: the policy deals in messages alone)."""

    @property
    def version(self) -> int:
        """Of the weights, as the trainer numbers them: the steps of training that are in them."""
        ...

    async def complete(self, request: Request) -> Completion:
        """Complete one turn. Raises whatever it likes; the rollout records it as `StopReason.POLICY_ERROR`."""
        ...

    async def release(self, session: str) -> None:
        """Forget what was kept for this session; called once when its episode ends."""
        ...

    async def close(self) -> None: ...


def calls_natively(policy: Policy) -> bool:
    """Whether a policy that deals in messages offers tools by its provider's own means (its `native_tools`), so that prompts
    need not describe them."""
    return policy.codec is None and bool(getattr(policy, "native_tools", False))


@runtime_checkable
class TrainablePolicy(Policy, Protocol):
    """A policy that training can move: it samples from weights that the trainer changes, and says exactly what.

    The trainer owns `model` and changes its weights in place. A policy that computes with this very module has nothing
    to fetch; one that samples elsewhere (a copy, an engine, a server) sends them there in `weights_changed`.
    """

    model: nn.Module
    """What is trained."""
    vision_frozen: bool
    """Set by the trainer: the vision tower keeps its weights, so what was computed of an image stays true."""
    samples_from_copy: bool
    """Whether turns are sampled with weights of the policy's own, so that `model` may change meanwhile. The trainer sets it
    to True where rollouts overlap with updates; a policy that cannot do so raises `ModelError`."""

    async def ready(self) -> None:
        """Wait until weights can be brought. Raises `AgentVisionError` where that will not be: nothing long is begun then."""
        ...

    async def rest(self) -> None:
        """No turn is asked for before the next `weights_changed`: what sampling alone needs may be given up."""
        ...

    async def weights_changed(self, version: int) -> None:
        """The module's weights are new, and are this version. When it returns, the next token is sampled with them.

        Turns in flight go on under them (`Completion.versions`); a policy with weights of its own has taken them over.
        """
        ...
