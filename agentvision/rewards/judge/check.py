"""An audit as it is run: labelled answers put to a judge, with the time that each took."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from agentvision.rewards.judge.audit import AuditCase, AuditResult, audit_cases, score_audit
from agentvision.rewards.judge.judge import Judge


@dataclass(frozen=True)
class Audited:
    """What an audit found. `latencies_s` are of the cases that a model was asked about, sorted; `counts` are the judge's."""

    result: AuditResult
    latencies_s: Sequence[float]
    counts: Mapping[str, float]

    def latency_s(self, quantile: float) -> float | None:
        """The nearest-rank quantile; None when no model was asked."""
        ranked = self.latencies_s
        return ranked[min(len(ranked) - 1, int(quantile * len(ranked)))] if ranked else None

    @property
    def cost_usd(self) -> float | None:
        """None when the price of any reply is not known."""
        return None if self.counts.get("unpriced") else self.counts.get("cost_usd", 0.0)


def some_cases(n: int | None = None) -> Sequence[AuditCase]:
    """Of the bundled cases all, or `n` spread evenly over their families."""
    cases = audit_cases()
    return cases if n is None or n >= len(cases) else [cases[k * len(cases) // n] for k in range(n)]


async def audit(
    judge: Judge,
    cases: Sequence[AuditCase],
    *,
    concurrency: int = 16,
    on_done: Callable[[int], None] = lambda done: None,
) -> Audited:
    """Put the cases to the judge, the first before all others.

    Raises `ChatError` when there is no reply to the first: a server that is not there, a key that is wrong.
    """
    chat, template = judge.cascade.large.chat, judge.cascade.large.template
    first = cases[0]
    await chat.ask(template.messages(question=first.question, truth=first.truth, answer=first.answer))
    judge.metrics()
    gate, latencies, done = asyncio.Semaphore(concurrency), [], 0

    async def one(case: AuditCase):
        nonlocal done
        async with gate:
            began = time.perf_counter()
            verdict = await judge(question=case.question, truth=case.truth, answer=case.answer, accepted=case.accepted)
            if verdict.by != "prefilter":
                latencies.append(time.perf_counter() - began)
        done += 1
        on_done(done)
        return verdict

    verdicts = await asyncio.gather(*map(one, cases))
    return Audited(score_audit(cases, verdicts), sorted(latencies), judge.summary(judge.metrics()))
