"""One model's word on a case: out of the cache, or asked for and read. What fails on the way is an invalid verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from agentvision.chat import ChatError, Reply, Usage
from agentvision.chat.chat import Messages
from agentvision.errors import AgentVisionError
from agentvision.rewards.judge.cache import VerdictCache, cache_key
from agentvision.rewards.judge.case import Case
from agentvision.rewards.judge.counts import Counts
from agentvision.rewards.judge.prompt import JudgeTemplate
from agentvision.rewards.judge.verdict import Verdict, parse_verdict, verdict_schema

ASKING = 1
"""Raised when the code that asks or reads changes what verdicts come out, so that cached ones are asked for again."""


class Model(Protocol):
    """What answers: a `Chat`, or what stands in for one."""

    @property
    def usage(self) -> Usage: ...

    async def ask(self, messages: Messages, *, schema: Mapping[str, Any] | None = None) -> Reply: ...


@dataclass(frozen=True)
class Asker:
    """`by` is the name on its verdicts. `identity` is what tells its model from another in the cache (name, server,
    sampling settings); `reasks` is how often a reply without a verdict is asked for again."""

    by: str
    connect: Callable[[], Model]
    identity: Mapping[str, Any]
    template: JudgeTemplate
    cache: VerdictCache
    counts: Counts
    reasks: int = 1

    @cached_property
    def chat(self) -> Model:
        """Made when first needed: a recipe can be read without the key of its judge. Raises `ChatSetupError`."""
        return self.connect()

    @property
    def ready(self) -> bool:
        """Whether its chat is made."""
        return "chat" in self.__dict__

    async def __call__(self, case: Case, *, sample: int = 0) -> Verdict:
        """Its verdict; `sample` numbers the times that it is asked about the same case."""
        key = cache_key(
            asking=ASKING,
            model=self.identity,
            template=self.template.fingerprint,
            question=case.question,
            truths=case.truths,
            answer=case.answer,
            sample=sample,
        )
        self.counts.add(wanted=1)
        known = self.cache.get(key)
        if known is not None:
            self.counts.add(cache_hits=1)
            return replace(known, by=self.by)
        verdict = await self._ask(case)
        self.cache.put(key, verdict)
        return verdict

    async def _ask(self, case: Case) -> Verdict:
        verdict = Verdict(None, "not asked")
        for _ in range(1 + self.reasks):
            try:
                # Made anew each time: what the judge failed to answer may have been its delimiter.
                messages = self.template.messages(
                    question=case.question, truth=case.truths[0], answer=case.answer, accepted=case.truths[1:]
                )
                reply = await self.chat.ask(messages, schema=verdict_schema(graded=self.template.graded))
            except ChatError as error:
                return Verdict(None, f"{error.reason}: {error}", by=self.by)
            except AgentVisionError as error:  # a template that cannot show this very case
                return Verdict(None, f"template: {error}", by=self.by)
            if reply.finish == "length":  # "Score: 0" may be the beginning of "Score: 0.8"
                verdict = Verdict(None, "the reply was cut off; raise max_tokens", by=self.by)
            else:
                verdict = replace(parse_verdict(reply.text, graded=self.template.graded), by=self.by)
            if verdict.valid:
                return verdict
            self.counts.add(unparsable=1)
        return replace(verdict, reason=f"unparsable: {verdict.reason}")
