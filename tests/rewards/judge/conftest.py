"""Judges whose models are functions, so that the truth about every verdict is known."""

import asyncio

import pytest

from agentvision.chat import ChatFailed, Reply, Usage
from agentvision.rewards.judge.asker import Asker
from agentvision.rewards.judge.cache import VerdictCache
from agentvision.rewards.judge.cascade import Cascade
from agentvision.rewards.judge.counts import Counts
from agentvision.rewards.judge.judge import Judge
from agentvision.rewards.judge.prompt import JudgeTemplate


class Model:
    """Replies with what `say(prompt, number of the call)` returns: a text or a `Reply`. Exceptions are raised, None waits."""

    def __init__(self, say="Score: 1"):
        self.say = say if callable(say) else lambda prompt, n: say
        self.prompts = []
        self.usage = Usage()
        self.closed = 0

    async def ask(self, messages, *, schema=None):
        self.prompts.append("\n".join(message["content"] for message in messages))
        self.usage += Usage(calls=1)
        said = self.say(self.prompts[-1], len(self.prompts) - 1)
        await asyncio.sleep(0)
        if isinstance(said, Exception):
            raise said
        if said is None:
            return await asyncio.Future()
        return said if isinstance(said, Reply) else Reply(said)

    async def close(self):
        self.closed += 1


DOWN = ChatFailed("no reply", reason="server_error")


def make_judge(large, small=None, *, rules=None, cache=None, graded=False, reasks=1, **others):
    counts, cache = Counts(), cache or VerdictCache()
    template = JudgeTemplate.load("graded" if graded else None)

    def asker(by, model):
        return Asker(by, lambda: model, {"model": by}, template, cache, counts, reasks)

    cascade = Cascade(
        large=asker("large", large), counts=counts, rules=rules, small=small and asker("small", small), **others
    )
    return Judge(cascade, cache=cache, counts=counts)


@pytest.fixture
def model():
    return Model


@pytest.fixture
def down():
    return DOWN


@pytest.fixture
def judge_of():
    return make_judge
