"""Which trajectories a report shows: few enough to read, varied enough to trust.

The steps are cut into thirds; in each, trajectories that differ in being right, in having looked closer and in needing
to are kinds of their own. Kinds take turns until the places are filled, so that a rare kind (the wrong answers of a
good policy) is as likely to be seen as a common one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from agentvision.evaluate.metrics import needs_original
from agentvision.journal import JournalEntry


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choice looks at: one line of a journal, without its weight."""

    step: int
    correct: bool | None
    called: bool
    hard: bool | None
    sample: str = ""

    @classmethod
    def of(cls, entry: JournalEntry) -> Facts:
        t = entry.trajectory
        return cls(entry.step, t.correct, t.looked_closer, needs_original(t), t.sample.id)


def choose(facts: Sequence[Facts], most: int) -> list[int]:
    """At most `most` indices into `facts`, ascending; the same choice for the same facts."""
    if not facts:
        return []
    first, last = min(f.step for f in facts), max(f.step for f in facts)
    kinds: dict[Hashable, list[int]] = defaultdict(list)
    for index, f in enumerate(facts):
        third = 0 if last == first else min(2, 3 * (f.step - first) // (last - first + 1))
        kinds[third, f.correct, f.called, f.hard].append(index)
    waiting = [_spread(kinds[kind]) for kind in sorted(kinds, key=repr)]
    chosen: list[int] = []
    asked: set[str] = set()
    while waiting and len(chosen) < most:
        waiting = [queue for queue in waiting if queue]
        for queue in waiting[: most - len(chosen)]:
            # A question that was not shown yet, if there is one: siblings of a group look alike.
            place = next((k for k, index in enumerate(queue) if facts[index].sample not in asked), 0)
            chosen.append(queue.pop(place))
            asked.add(facts[chosen[-1]].sample)
    return sorted(chosen)


def _spread(indices: list[int]) -> list[int]:
    """Reordered so that any beginning of the list is spread over the whole: last, first, middle, quarters, …"""
    order: list[int] = []
    seen: set[int] = set()
    parts = 1
    while len(order) < len(indices):
        for k in range(parts + 1):
            place = round(k * (len(indices) - 1) / parts)
            if place not in seen:
                seen.add(place)
                order.append(indices[place])
        parts *= 2
    return [order[1], order[0], *order[2:]] if len(order) > 1 else order
