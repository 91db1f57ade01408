"""What comes back: one reply, and the counts of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class ToolUse:
    """A tool call by the protocol's own means. `arguments` are as the model wrote them, which may be no JSON.

    `raw` is the call as it goes back to the provider in the next request.
    """

    name: str
    arguments: str
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class Reply:
    """A model's words and what they took. `cost_usd` is None where no price is known or no usage was reported.

    `thinking` are the provider's own blocks of it, to be sent back as they are with the calls that they led to.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    seconds: float = 0.0  # from the call to the reply, with every wait
    attempts: int = 1
    finish: str = "stop"  # "length": cut off at max_tokens
    structured: bool = False  # the provider was held to the schema
    reasoning: str = ""  # what it thought, where the provider tells it apart
    calls: tuple[ToolUse, ...] = ()
    thinking: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Usage:
    """Counts since the beginning. They add and subtract, over models, ranks and spans of time."""

    calls: int = 0
    replies: int = 0
    attempts: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    unpriced: int = 0  # replies whose cost is not known
    seconds: float = 0.0  # summed over calls, waits included
    faults: Mapping[str, int] = field(default_factory=dict)  # attempts that failed, by reason
    failures: Mapping[str, int] = field(default_factory=dict)  # calls without a reply, by reason

    def __add__(self, other: Usage) -> Usage:
        return self._each(other, 1)

    def __sub__(self, other: Usage) -> Usage:
        return self._each(other, -1)

    def _each(self, other: Usage, sign: int) -> Usage:
        values: dict[str, Any] = {}
        for entry in fields(self):
            mine, theirs = getattr(self, entry.name), getattr(other, entry.name)
            if isinstance(mine, Mapping):
                total = Counter(mine)
                for reason, count in theirs.items():
                    total[reason] += sign * count
                values[entry.name] = {reason: count for reason, count in total.items() if count}
            else:
                values[entry.name] = mine + sign * theirs
        return Usage(**values)
