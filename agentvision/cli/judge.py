"""`agentvision judge`: whether a judge is good enough, before money is spent on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from agentvision.cli._options import AsJson, Count, named_values
from agentvision.cli._terminal import printable, progress

if TYPE_CHECKING:
    from agentvision.evaluate.metrics import Estimate
    from agentvision.rewards.judge.check import Audited

app = cyclopts.App(name="judge", help="Check how good a judge is.")

MISTAKES = 10
"""Wrong answers called right that are shown."""


@app.command
def check(
    *settings: str,
    model: str,
    api_base: str | None = None,
    api_key_env: str | None = None,
    template: str | None = None,
    n: Count = None,
    concurrency: Annotated[int, Parameter(validator=cyclopts.validators.Number(gte=1))] = 16,
    json_: AsJson = False,
) -> None:
    """Put the bundled audit to a judge: labelled answers, right and wrong, made to be hard.

    Prints its accuracy, how often it calls a wrong answer right, what it costs and how long it takes; without rules and
    without a cache, so that every number is the model's.

    Parameters
    ----------
    settings
        Further settings of a recipe's judge, as name=value: call_timeout_s=60, temperature=null, prices=[0.1, 0.4].
    model
        By litellm's name: openai/gpt-4o, anthropic/…; openai/NAME with --api-base for a server of your own.
    api_base
        Where that server is, such as http://localhost:8000/v1.
    api_key_env
        The environment variable that holds the key; by default the provider's usual one.
    template
        The prompt: binary, graded, or the path of your own.
    n
        Ask about so many of the cases, spread over all families; by default all.
    concurrency
        Requests at a time.
    json_
        Print JSON.
    """
    from agentvision._workers import run_sync
    from agentvision.rewards.judge.check import audit, some_cases
    from agentvision.rewards.judge.judge import Judge

    own = {"model": model, "api_base": api_base, "api_key_env": api_key_env, "template": template}
    asked_alone = {"rules": False, "cache": None, "audit_share": 0.0, "concurrency": concurrency}
    judge = Judge.from_config(named_values(settings), **own, **asked_alone)
    judge.check()
    cases = some_cases(n)

    async def run() -> Audited:
        with progress() as bar:
            task = bar.add_task("answers", total=len(cases))
            try:
                return await audit(
                    judge,
                    cases,
                    concurrency=concurrency,
                    on_done=lambda done: bar.update(task, completed=done),
                )
            finally:
                await judge.close()

    audited = run_sync(run)
    if json_:
        print(json.dumps(_as_json(model, audited), indent=2))
    else:
        _show(model, audited)


def _as_json(model: str, audited: Audited) -> dict[str, Any]:
    scores = audited.result.overall
    rates = {
        "accuracy": scores.accuracy,
        "false_positive_rate": scores.false_positives,
        "false_negative_rate": scores.false_negatives,
        "invalid_rate": scores.invalid,
    }
    return {
        "model": model,
        "n": scores.cases,
        **{name: estimate.value for name, estimate in rates.items()},
        **{f"{name}_ci": estimate.ci for name, estimate in rates.items()},
        "cost_usd": audited.cost_usd,
        "latency_p50_s": audited.latency_s(0.5),
        "latency_p95_s": audited.latency_s(0.95),
        "families": {
            name: {
                "n": found.cases,
                "accuracy": found.accuracy.value,
                "false_positive_rate": found.false_positives.value,
                "invalid_rate": found.invalid.value,
            }
            for name, found in audited.result.families.items()
        },
        "mistakes": [
            {"id": case.id, "answer": case.answer, "truth": case.truth, "label": case.label, "score": verdict.score}
            for case, verdict in audited.result.mistakes
        ],
        "counts": dict(audited.counts),
    }


def _show(model: str, audited: Audited) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table("family", "answers", "accuracy", "wrong called right", "no verdict", title=Text(printable(model)))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, found in audited.result.families.items():
        shares = (found.accuracy, found.false_positives, found.invalid)
        table.add_row(name, str(found.cases), *(_percent(share) for share in shares))
    console.print(table)
    scores = audited.result.overall
    p50, p95 = audited.latency_s(0.5), audited.latency_s(0.95)
    cost = audited.cost_usd
    rows = {
        "accuracy": _percent(scores.accuracy, interval=True),
        "wrong answers called right": _percent(scores.false_positives, interval=True),
        "right answers called wrong": _percent(scores.false_negatives, interval=True),
        "no verdict": _percent(scores.invalid, interval=True),
        "requests": f"{audited.counts.get('attempts', 0):.0f}",
        "cost": "the model's price is not known" if cost is None else f"${cost:.4f}",
        "latency": "-" if p50 is None or p95 is None else f"{p50:.2f} s (median), {p95:.2f} s (95 %)",
    }
    for name, value in rows.items():
        console.print(Text(f"{name:<28} {value}"))
    fooled = [case for case, verdict in audited.result.mistakes if not case.label]
    for case in fooled[:MISTAKES]:
        line = f"called right: {case.answer[:60]!r} for {case.truth[:40]!r} ({case.id}: {case.note})"
        console.print(Text(printable(line)), soft_wrap=True)
    if len(fooled) > MISTAKES:
        console.print(Text(f"… and {len(fooled) - MISTAKES} more; --json has all"))


def _percent(share: Estimate, *, interval: bool = False) -> str:
    if share.value is None:
        return "-"
    text = f"{100 * share.value:.1f} %"
    if interval and share.low is not None and share.high is not None:
        text += f"  ({100 * share.low:.1f}–{100 * share.high:.1f})"
    return text
