"""What one request said of a turn: read from a server's answer and held against the ledger; joined, where a pause made several.

Nothing of an answer is believed that can be checked: its prompt is the trainer's stream, its log-probs are of its ids, its
versions are weights that somebody brought.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentvision.engine.types import BrokenNumbers, EngineError, EngineLost, Sampled
from agentvision.policy import VersionSpan

FIRST_VERSION = "default"
"""What vLLM calls the weights that it was started with: version 0 here."""

BAN = -100.0
"""What is added to a banned id's logit: nothing is left of it in float32, so no log-prob of what was drawn is so low."""


@dataclass(frozen=True, slots=True)
class Part:
    """`sampled` counts from this part's own beginning; `aborted`: a pause ended it."""

    sampled: Sampled
    aborted: bool


def part_of(body: Any, *, prompt: Sequence[int], brought: str | None, url: str) -> Part:
    """The answer of the server at `url`, which had taken the weights `brought` when it was asked.

    Raises `EngineLost` when it gave the turn up or forgot those weights, `EngineError` for what is wrong whoever is asked,
    and whatever Python raises on an answer of another form.
    """
    _compare(prompt, body["prompt_token_ids"], url)
    choice = body["choices"][0]
    ended = choice["finish_reason"]
    if ended not in ("stop", "length", "abort"):
        raise EngineLost(f"{url} gave a turn up ({ended!r})")
    ids = tuple(int(i) for i in choice["token_ids"] or ())
    content = (choice["logprobs"] or {}).get("content") or []
    if [entry["token_id"] for entry in content] != list(ids):
        raise EngineError(f"{url} gave log-probs of other ids than it sampled")
    logprobs = tuple(float(entry["logprob"]) for entry in content)
    refuse_broken(logprobs, who=url)
    told = [(s["version"], int(s["start"]), int(s["end"])) for s in choice["weight_versions"] or ()]
    if brought is not None and ids and (not told or FIRST_VERSION in (label for label, _, _ in told)):
        raise EngineLost(f"{url} lost its weights: it was started again")
    sampled = Sampled(
        ids=ids,
        logprobs=logprobs,
        versions=spans_of(told, len(ids), who=url),
        prompt_tokens=len(prompt),
        cached_tokens=int((body["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
    )
    return Part(sampled, aborted=ended == "abort")


def refuse_broken(logprobs: Sequence[float], *, who: str) -> None:
    """Raise `BrokenNumbers` for what cannot have been drawn. (A server writes -9999 for NaN and minus infinity.)"""
    if bad := [p for p in logprobs if not (math.isfinite(p) and p > BAN)]:
        raise BrokenNumbers(f"{who} sampled an id whose log-prob is {bad[0]!r}: its weights or its numbers are broken")


def version_number(label: str, *, who: str) -> int:
    """Of the weights that vLLM calls so. Raises `EngineError` for a name that is not of this package's giving."""
    if label == FIRST_VERSION:
        return 0
    if not label.isdigit():
        raise EngineError(f"{who} says its weights are of version {label!r}, which agentvision did not bring")
    return int(label)


def spans_of(told: Sequence[tuple[str, int, int]], length: int, *, who: str) -> tuple[VersionSpan, ...]:
    """vLLM's spans (version, start, end) over `length` ids; it tells of none before it was brought weights."""
    told = told or ([(FIRST_VERSION, 0, length)] if length else [])
    return tuple(VersionSpan(version_number(label, who=who), start, end) for label, start, end in told)


def joined(first: Sampled, then: Sampled) -> Sampled:
    """One turn of two parts: the prompt is the first's, and what one version sampled is one span."""
    at = len(first.ids)
    versions = list(first.versions)
    for span in then.versions:
        if versions and span.version == versions[-1].version:
            versions[-1] = replace(versions[-1], end=at + span.end)
        else:
            versions.append(VersionSpan(span.version, at + span.start, at + span.end))
    return replace(first, ids=first.ids + then.ids, logprobs=first.logprobs + then.logprobs, versions=tuple(versions))


def _compare(ledger: Sequence[int], engine: Sequence[int], url: str) -> None:
    if list(ledger) == list(engine):
        return
    at = next((k for k, (a, b) in enumerate(zip(ledger, engine)) if a != b), min(len(ledger), len(engine)))
    raise EngineError(
        f"{url} read another prompt than the ledger's: {len(engine)} ids against {len(ledger)}, different from id"
        f" {at} on ({list(engine[at : at + 3])!r} against {list(ledger[at : at + 3])!r}). The server must serve the same"
        " model with the same image limits (where the recipe sets model.min_pixels or max_pixels: --mm-processor-kwargs"
        """ '{"size": {"shortest_edge": …, "longest_edge": …}}')"""
    )
