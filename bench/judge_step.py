"""A step of the paper's size put to a judge: 512 prompts × 16 rollouts, asked about as the framework does and naively.

The answers are drawn, since no run of that size can be had here. A prompt's rollouts agree: each gives the prompt's usual
answer with a probability drawn from Beta(4, 1) (mean .8), else one of six others, the k-th with weight 1/k. What is said is
said in several ways (bare, as a sentence, with a full stop, in capitals; weights 5, 2, 2, 1), so that equal answers are not
always equal texts. Two prompts in five ask for a number, one in five for an option, two in five for words; the usual answer
is right three times in four; one answer in fifty is empty. `step_of(seed)` gives the same step everywhere.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agentvision.chat import Chat
from agentvision.rewards.judge import Judge, judge_messages

ROLLOUTS = 16
CONCURRENCY = 100
WAYS = ("{}", "It is {}.", "{}.", "{upper}")
WORDS = ("amber", "bakery", "copper", "dolphin", "engine", "feather", "garden", "harbour")
WORDS += ("island", "jacket", "kettle", "lantern", "mirror", "needle", "orchard")


@dataclass(frozen=True)
class Prompt:
    question: str
    truth: str
    answers: tuple[str, ...]


def step_of(seed: int, *, prompts: int = 512) -> list[Prompt]:
    rng = random.Random(seed)
    return [_prompt(rng, n) for n in range(prompts)]


def _prompt(rng: random.Random, n: int) -> Prompt:
    kind = rng.choices(("number", "option", "words"), (2, 1, 2))[0]
    options = rng.sample(WORDS, 4)
    if kind == "number":
        possible = [str(value) for value in rng.sample(range(2, 2000), 7)]
    elif kind == "option":
        possible = ["A", "B", "C", "D"]
    else:
        possible = [" ".join(rng.sample(WORDS, rng.randint(1, 3))) for _ in range(7)]
    question = f"Picture {n}: which {kind} is meant?"
    if kind == "option":
        question += "".join(f"\n({letter}) {text}" for letter, text in zip("ABCD", options, strict=True))
    truth = possible[0] if rng.random() < 0.75 else possible[1]
    agree = rng.betavariate(4, 1)
    answers = []
    for _ in range(ROLLOUTS):
        others = possible[1:]
        said = possible[0]
        if rng.random() > agree:
            said = rng.choices(others, [1 / (k + 1) for k in range(len(others))])[0]
        way = rng.choices(WAYS, (5, 2, 2, 1))[0]
        answers.append("" if rng.random() < 0.02 else way.format(said, upper=said.upper()))
    return Prompt(question, truth, tuple(answers))


async def ask_the_judge(judge: Judge, step: Sequence[Prompt]) -> int:
    """Verdicts that are valid, of all rollouts at once."""
    verdicts = await asyncio.gather(
        *(judge(question=p.question, truth=p.truth, answer=answer) for p in step for answer in p.answers)
    )
    return sum(verdict.valid for verdict in verdicts)


async def ask_naively(chat: Chat, step: Sequence[Prompt]) -> int:
    """Replies, one request a rollout."""
    replies = await asyncio.gather(
        *(chat.ask(judge_messages(question=p.question, truth=p.truth, answer=a)) for p in step for a in p.answers)
    )
    return len(replies)


def side(kind: str, url: str, prompts: int, cache: str | None = None, seed: int = 0) -> dict[str, Any]:
    """One side of the comparison, in a process of its own: what it took, beyond being set up.

    `kind` is `naive`, `judge` (the framework's defaults) or `judge-no-rules`.
    """
    step = step_of(seed, prompts=prompts)
    settings: dict[str, Any] = {"concurrency": CONCURRENCY, "call_timeout_s": 120.0}
    judge = Judge.from_config(
        model="openai/bench", api_base=url, cache=cache, audit_share=0.0, rules=kind == "judge", **settings
    )
    judge.check()
    warm = judge_messages(question="Warm?", truth="yes", answer="it is")  # importing the client takes seconds
    asyncio.run(judge.cascade.large.chat.ask(warm))
    judge.metrics()
    before = _peak_mib()
    began = time.perf_counter()
    if kind == "naive":
        valid = asyncio.run(ask_naively(judge.cascade.large.chat, step))  # type: ignore[arg-type]
    else:
        valid = asyncio.run(ask_the_judge(judge, step))
    seconds = time.perf_counter() - began
    counts = judge.summary(judge.metrics())
    asyncio.run(judge.close())
    return {
        "side": kind,
        "judgements": prompts * ROLLOUTS,
        "valid": valid,
        "calls": int(counts.get("attempts", 0)),
        "seconds": seconds,
        "memory_mib": _peak_mib() - before,
        "counts": counts,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
