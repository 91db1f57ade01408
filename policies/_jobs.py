"""What goes into the engine and what comes out: jobs, outcomes, counts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from agentvision.images import ImageStore
from agentvision.policy import Request, SamplingParams, VersionSpan
from agentvision.types import ImageSegment, Segment

NO_TOKENS = np.zeros(0, dtype=np.int64)


@dataclass(slots=True)
class PolicyStats:
    """What a policy did since it was made. Tokens are language-model tokens; an image counts each of its own."""

    requests: int = 0
    prefilled_tokens: int = 0
    """Computed by a prefill."""
    reused_tokens: int = 0
    """Taken from keys and values already there: the session's own, or a sibling's."""
    prefill_calls: int = 0
    vision_images: int = 0
    vision_calls: int = 0
    decode_steps: int = 0
    decode_rows: int = 0
    """Rows computed in all decode steps, idle ones included."""
    sampled_tokens: int = 0
    evicted_sessions: int = 0
    admit_s: float = 0.0
    """In joining and prefilling, the vision tower included."""
    vision_s: float = 0.0
    decode_s: float = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """One turn to complete. `codes` (T,) names each token of its prompt (see `codes_of`)."""

    session: str
    segments: tuple[Segment, ...]
    codes: np.ndarray
    store: ImageStore
    sampling: SamplingParams
    turn: int
    cancelled: bool = False
    ids: list[int] = field(default_factory=list)
    """Sampled before the weights changed under the turn; `logprobs` and `versions` theirs."""
    logprobs: list[float] = field(default_factory=list)
    versions: tuple[VersionSpan, ...] = ()
    prefilled: int = 0
    reused: int = 0
    arrived: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, request: Request, *, vocab_size: int) -> Job:
        """Raises `ValueError` for a request that no model could complete."""
        if not request.segments:
            raise ValueError(f"the request of session {request.session!r} has no tokens to go on from")
        if request.sampling.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {request.sampling.max_tokens!r}")
        if not request.sampling.temperature >= 0 or not 0 < request.sampling.top_p <= 1 or request.sampling.top_k < 0:
            raise ValueError(f"temperature ≥ 0, 0 < top_p ≤ 1 and top_k ≥ 0 do not hold in {request.sampling!r}")
        codes = codes_of(request.segments)
        if len(codes) == 0 or codes.max() >= vocab_size:
            raise ValueError(f"session {request.session!r} needs a token at least, and ids of 0 … {vocab_size - 1}")
        return cls(request.session, request.segments, codes, request.store, request.sampling, request.turn)

    @property
    def known(self) -> np.ndarray:
        """The prompt and what this turn has said so far: what a row must hold before the next token."""
        return np.concatenate([self.codes, np.asarray(self.ids, dtype=np.int64)]) if self.ids else self.codes

    def versions_of(self, ids: list[int], *, version: int) -> tuple[VersionSpan, ...]:
        """Of `ids`, all that the turn has said so far: those that are new since the weights changed are of `version`."""
        new = VersionSpan(version, len(self.ids), len(ids))
        return (*self.versions, new) if new.start < new.end else self.versions


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: its ids, their log-probs and versions, or an error."""

    job: Job
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    versions: tuple[VersionSpan, ...] = ()
    error: Exception | None = None


def codes_of(segments: Iterable[Segment]) -> np.ndarray:
    """(T,) int64 over the trainer's stream: a text token's id, an image token's negative number made of the hash."""
    pieces = [
        np.full(s.tokens, -1 - int(s.image[:15], 16), dtype=np.int64)
        if isinstance(s, ImageSegment)
        else np.asarray(s.ids, dtype=np.int64)
        for s in segments
    ]
    return np.concatenate(pieces) if pieces else NO_TOKENS


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading entries of a (M,) and b (N,) are equal."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n
