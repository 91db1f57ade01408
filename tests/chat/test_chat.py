"""A chat model over real sockets: each fault, each limit, any loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agentvision.chat import Chat
from tests.openai_server import FAULTS, OpenAIServer

ASK = [{"role": "user", "content": "Is it right?"}]


def chat(server: OpenAIServer, **settings) -> Chat:
    return Chat("openai/judge", api_base=server.url, **settings)


async def test_a_reply_is_the_models_words_with_what_they_took():
    with OpenAIServer(answer=lambda request: f"you said {request.text}") as server:
        model = chat(server, prices=[1.0, 2.0], max_tokens=9)
        reply = await model.ask(ASK)
    assert reply.text == "you said Is it right?" and reply.attempts == 1 and not reply.structured
    assert (reply.prompt_tokens, reply.completion_tokens) == (10, 3)
    assert reply.cost_usd == pytest.approx(16e-6)
    assert server.requests[0].body == {
        "model": "judge", "messages": ASK, "temperature": 0.0, "max_tokens": 9
    }  # fmt: skip
    assert model.usage.replies == 1 and model.usage.cost_usd == reply.cost_usd


@pytest.mark.parametrize("kind", FAULTS)
async def test_after_a_fault_it_is_asked_again(kind):
    with OpenAIServer(fault=lambda request: kind if request.index == 0 else None, retry_after="0") as server:
        reply = await chat(server, timeout_s=3.0).ask(ASK)
    assert reply.text == "Score: 1" and reply.attempts == 2 and len(server.requests) == 2


def test_one_model_serves_several_loops_and_threads():
    with OpenAIServer(latency_s=0.05) as server:
        model = chat(server)
        replies = [asyncio.run(model.ask(ASK)) for _ in range(2)]
        threads = [threading.Thread(target=lambda: replies.append(asyncio.run(model.ask(ASK)))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert [reply.text for reply in replies] == ["Score: 1"] * 4
