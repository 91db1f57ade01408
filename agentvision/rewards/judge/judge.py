"""The judge: is this answer right? Asked of as few models as possible, once, and never guessed.

An answer that says nothing is 0 at once (`prefilter`); what is being judged already is waited for (`flight`); then the
cascade decides, out of the cache or by asking. What a model or a network does wrong is an invalid verdict with its reason.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agentvision.chat import Chat, Usage
from agentvision.errors import RecipeError
from agentvision.rewards.accuracy import Rule
from agentvision.rewards.judge.asker import Asker
from agentvision.rewards.judge.cache import VerdictCache
from agentvision.rewards.judge.cascade import Cascade
from agentvision.rewards.judge.case import Case
from agentvision.rewards.judge.counts import Counts, usage_counts, with_shares
from agentvision.rewards.judge.flight import SingleFlight
from agentvision.rewards.judge.prefilter import prefilter
from agentvision.rewards.judge.prompt import JudgeTemplate
from agentvision.rewards.judge.rules import Rules
from agentvision.rewards.judge.settings import JudgeSettings, ModelSettings
from agentvision.rewards.judge.verdict import Verdict

_IDENTITY = ("model", "api_base", "temperature", "max_tokens", "json_schema", "settings")
"""Settings of a model on which its verdicts depend."""


class Judge:
    """Judges answers; made by `from_config`. Safe in threads, in many tasks and on several event loops."""

    def __init__(self, cascade: Cascade, *, cache: VerdictCache, counts: Counts) -> None:
        self.cascade, self.cache, self.counts = cascade, cache, counts
        self._flights: SingleFlight[Verdict] = SingleFlight()
        self._reported: dict[str, Usage] = {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, /, **settings: Any) -> Judge:
        """A judge by the keys of a recipe's `judge:` part, in a map, as keyword arguments, or both.

        Raises `RecipeError` with a line for each wrong setting. Nothing is asked or written yet.
        """
        wanted = JudgeSettings.read({**(config or {}), **settings})
        try:
            template = JudgeTemplate.load(wanted.template, graded=wanted.graded)
        except RecipeError as error:
            raise RecipeError(f"template: {str(error).removeprefix('judge: ')}") from None
        cache, counts = VerdictCache(cache_path(wanted.cache)), Counts()

        def asker(by: str, model: ModelSettings) -> Asker:
            return Asker(
                by=by,
                connect=lambda: chat_of(model),
                identity=model.model_dump(include=set(_IDENTITY)),
                template=template,
                cache=cache,
                counts=counts,
                reasks=wanted.reasks,
            )

        cascade = Cascade(
            large=asker("large", wanted),
            counts=counts,
            rules=Rules() if wanted.rules else None,
            small=asker("small", wanted.small) if wanted.small else None,
            samples=wanted.small.samples if wanted.small else 1,
            audit_share=wanted.audit_share,
        )
        return cls(cascade, cache=cache, counts=counts)

    async def __call__(
        self,
        *,
        question: str,
        truth: str,
        answer: str | None,
        accepted: Sequence[str] = (),
        grading: Rule | None = None,
    ) -> Verdict:
        """Whether `answer` means `truth` or one of `accepted`. Never raises for what a model or a network does.

        `grading` is the rule that the data set names for this question, if any.
        """
        verdict = prefilter(answer, truth=truth, accepted=accepted)
        if verdict is None and answer is not None:
            case = Case.of(question=question, truth=truth, answer=answer, accepted=tuple(accepted), grading=grading)
            if case.truths:
                verdict, joined = await self._flights(case, lambda: self.cascade(case))
                self.counts.add(joined=joined)
            else:
                verdict = Verdict(None, "no ground truth: there is nothing to compare with")
        assert verdict is not None
        self.counts.verdict(verdict)
        return verdict

    def check(self) -> None:
        """Raise `ChatSetupError` for what would make every verdict invalid, such as a missing key."""
        for asker in self.cascade.askers:
            asker.chat  # noqa: B018 - made here

    def metrics(self) -> dict[str, float]:
        """Counts since the last call; those of several processes add up, and `summary` makes shares of the sums."""
        found = Counter(self.counts.take())
        for asker in self.cascade.askers:
            if not asker.ready:
                continue
            usage = asker.chat.usage
            since, self._reported[asker.by] = usage - self._reported.get(asker.by, Usage()), usage
            found.update(usage_counts(since))
            found[f"calls_{asker.by}"] += since.calls
        return dict(found)

    summary = staticmethod(with_shares)

    async def close(self) -> None:
        """End the workers, and write what is to be kept. (Connections are shared by all models and end with the process.)"""
        if self.cascade.rules is not None:
            self.cascade.rules.close()
        self.cache.close()


def chat_of(settings: ModelSettings) -> Chat:
    """The model of these settings; no connection is made yet."""
    return Chat(
        settings.model,
        api_base=settings.api_base,
        api_key_env=settings.api_key_env,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        timeout_s=settings.call_timeout_s,
        attempts=settings.attempts,
        patience_s=settings.patience_s,
        concurrency=settings.concurrency,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        max_cost_usd=settings.max_cost_usd,
        prices=settings.prices,
        json_schema=settings.json_schema,
        settings=settings.settings,
    )


def cache_path(spec: str | None) -> Path | None:
    """The file of a recipe's `cache:`. The user's own is one of this machine alone: sqlite's WAL cannot be shared over a
    network, and a home folder may be."""
    if spec == "user":
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return base / "agentvision" / f"verdicts-{platform.node() or 'here'}.sqlite"
    return Path(spec).expanduser() if spec else None
