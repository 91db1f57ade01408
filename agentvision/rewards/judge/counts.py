"""What a judge counts. Counts add up over processes; shares are derived from the sums."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields

from agentvision.chat import Usage
from agentvision.rewards.judge.verdict import Verdict

DECIDERS = ("prefilter", "rules", "small", "large")


class Counts:
    """Numbers by name since they were last taken. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, **more: float) -> None:
        with self._lock:
            self._counts.update(more)

    def verdict(self, verdict: Verdict) -> None:
        """A judgement and who made it, or that there is none."""
        kind = verdict.by if verdict.valid else f"invalid/{verdict.reason.partition(':')[0]}"
        self.add(**{"judged": 1, ("by_" + kind if verdict.valid else kind): 1})

    def take(self) -> dict[str, float]:
        with self._lock:
            taken, self._counts = self._counts, Counter()
        return dict(taken)


def usage_counts(usage: Usage) -> dict[str, float]:
    """What asking took, flat."""
    flat = {f"{name}/{reason}": n for name in ("faults", "failures") for reason, n in getattr(usage, name).items()}
    return {**{f.name: getattr(usage, f.name) for f in fields(usage) if f.name not in ("faults", "failures")}, **flat}


def with_shares(counts: Mapping[str, float]) -> dict[str, float]:
    """The counts and what follows from them. What divides by nothing is left out."""
    invalid = sum(value for name, value in counts.items() if name.startswith("invalid/"))
    ratios = {
        **{f"share_{who}": (f"by_{who}", "judged") for who in DECIDERS},
        "share_joined": ("joined", "judged"),
        "cache_hit_rate": ("cache_hits", "wanted"),
        "agreement": ("agreed", "audited"),
        "agreement_rules": ("agreed_rules", "audited_rules"),
        "agreement_small": ("agreed_small", "audited_small"),
        "latency_mean_s": ("seconds", "calls"),
    }
    found = {**counts, "invalid": invalid}
    shares = {name: found.get(over, 0.0) / found[under] for name, (over, under) in ratios.items() if found.get(under)}
    if found.get("judged"):
        shares["share_invalid"] = invalid / found["judged"]
    return {**found, **shares}
