"""A chat model over real sockets: each fault, each limit, any loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict

import pytest

from agentvision.chat import Chat, ChatDown, ChatError, ChatFailed, ChatRefused, CostCeiling
from agentvision.chat import chat as chat_module
from tests.openai_server import FAULTS, OpenAIServer, outage_from, seeded_faults

ASK = [{"role": "user", "content": "Is it right?"}]
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer"}},
    "required": ["score"],
    "additionalProperties": False,
}
REASONS = {
    "429": "rate_limited",
    "429-retry-after": "rate_limited",
    "500": "server_error",
    "hang": "timeout",
    "reset": "connection",
    "truncated": "connection",
    "empty": "malformed",
    "wrong-json": "malformed",
    "wrong-shape": "malformed",
}


def chat(server: OpenAIServer, **settings) -> Chat:
    return Chat("openai/judge", api_base=server.url, **settings)


def first(kind: str):
    """Only the first request goes wrong."""
    return lambda request: kind if request.index == 0 else None


async def test_a_reply_is_the_models_words_with_what_they_took():
    with OpenAIServer(answer=lambda request: f"you said {request.text}", latency_s=0.05) as server:
        model = chat(server, prices=[1.0, 2.0], max_tokens=9, settings={"seed": 7})
        reply = await model.ask(ASK)
    assert reply.text == "you said Is it right?" and reply.attempts == 1 and not reply.structured
    assert (reply.prompt_tokens, reply.completion_tokens, reply.finish) == (10, 3, "stop")
    assert reply.cost_usd == pytest.approx(16e-6) and reply.seconds >= 0.05
    body = {"model": "judge", "messages": ASK, "temperature": 0.0, "max_tokens": 9, "seed": 7}
    assert server.requests[0].body == body
    usage = model.usage
    assert (usage.calls, usage.replies, usage.attempts, usage.retries, usage.unpriced) == (1, 1, 1, 0, 0)
    assert (usage.prompt_tokens, usage.completion_tokens) == (10, 3) and usage.cost_usd == reply.cost_usd


async def test_images_go_as_parts_of_a_message():
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    with OpenAIServer() as server:
        await chat(server, temperature=None).ask([{"role": "user", "content": content}])
    assert server.requests[0].body["messages"][0]["content"] == content
    assert "temperature" not in server.requests[0].body


@pytest.mark.parametrize("kind", FAULTS)
async def test_after_a_fault_it_is_asked_again(kind):
    with OpenAIServer(fault=first(kind), retry_after="0") as server:
        model = chat(server, timeout_s=4.0 if kind == "hang" else 60.0)
        reply = await model.ask(ASK)
    assert reply.text == "Score: 1" and reply.attempts == 2 == len(server.requests)
    assert model.usage.faults == {REASONS[kind]: 1} and model.usage.failures == {} and model.usage.retries == 1


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind != "hang"])
async def test_where_every_attempt_fails_there_is_no_reply_but_a_reason(kind):
    with OpenAIServer(fault=lambda request: kind, retry_after="0") as server:
        model = chat(server, attempts=2)
        with pytest.raises(ChatFailed) as caught:
            await model.ask(ASK)
    assert caught.value.reason == REASONS[kind] and len(server.requests) == 2
    assert model.usage.failures == {REASONS[kind]: 1} and model.usage.replies == 0


async def test_a_deadline_holds_for_the_whole_attempt():
    with OpenAIServer(fault=lambda request: "hang") as server:
        model = chat(server, timeout_s=0.5, attempts=1)
        began = time.monotonic()
        with pytest.raises(ChatFailed, match=r"within 0\.5 s") as caught:
            await model.ask(ASK)
    assert caught.value.reason == "timeout" and time.monotonic() - began < 10


async def test_an_empty_reply_is_no_reply():
    replies = iter(["", "  \n", None, "Score: 0"])
    with OpenAIServer(answer=lambda request: {"role": "assistant", "content": next(replies)}) as server:
        model = chat(server, prices=[1, 1])
        reply = await model.ask(ASK)
    assert reply.text == "Score: 0" and reply.attempts == 4
    assert model.usage.faults == {"empty": 3}
    assert model.usage.prompt_tokens == 40 and model.usage.cost_usd == pytest.approx(52e-6), "they were paid for"


@pytest.mark.parametrize(
    ("finish", "reason", "fix"), [("length", "cut_off", "max_tokens"), ("content_filter", "filtered", "content filter")]
)
async def test_a_reply_without_words_that_asking_again_would_not_mend(finish, reason, fix):
    with OpenAIServer(answer=lambda request: "", finish=finish) as server:
        with pytest.raises(ChatRefused, match=fix) as caught:
            await chat(server).ask(ASK)
        assert caught.value.reason == reason and len(server.requests) == 1
        server.answer = lambda request: "Score: 1 because"
        assert (await chat(server).ask(ASK)).finish == finish


async def test_a_server_that_reports_no_usage_has_no_cost_and_the_ceiling_assumes_the_most():
    with OpenAIServer(usage=None) as server:
        model = chat(server, prices=[1.0, 100.0], max_tokens=1000, max_cost_usd=0.25)
        reply = await model.ask(ASK)
        assert reply.cost_usd is None and model.usage.unpriced == 1 and model.usage.cost_usd == 0
        await model.ask(ASK)
        with pytest.raises(CostCeiling):  # 0.20 may be spent, and another 0.10 are too much
            await model.ask(ASK)
    assert len(server.requests) == 2 and model.usage.failures == {"cost_ceiling": 1}


async def test_the_ceiling_holds_with_many_at_a_time():
    with OpenAIServer(usage=(100, 50), latency_s=0.02) as server:
        model = chat(server, prices=[10.0, 100.0], max_tokens=100, max_cost_usd=0.1, concurrency=16)
        results = await asyncio.gather(*[model.ask(ASK) for _ in range(40)], return_exceptions=True)
    refused = [result for result in results if isinstance(result, CostCeiling)]
    assert refused and len(server.requests) + len(refused) == 40
    assert 0.08 < model.usage.cost_usd <= 0.1 and model.usage.cost_usd == pytest.approx(0.006 * len(server.requests))


@pytest.mark.parametrize(("setting", "held"), [(None, False), (True, True), (False, False)])
async def test_a_schema_is_sent_where_the_model_can_be_held_to_it(setting, held):
    with OpenAIServer(answer=lambda request: '{"score": 1}') as server:
        reply = await chat(server, json_schema=setting).ask(ASK, schema=SCHEMA)
        assert reply.structured is held and ("response_format" in server.requests[0].body) is held
        if held:
            assert server.requests[0].body["response_format"]["json_schema"]["schema"] == SCHEMA
        known = Chat("openai/gpt-4o-mini", api_base=server.url)
        assert (await known.ask(ASK, schema=SCHEMA)).structured, "litellm says that this one can"
        assert not (await known.ask(ASK)).structured


def test_one_model_serves_several_loops_and_threads():
    """Connections and semaphores outlive the loop of whoever first asked; several at a time have to wait for a slot."""
    with OpenAIServer(latency_s=0.2) as server:
        model = chat(server, concurrency=2, requests_per_minute=1000, tokens_per_minute=10**7)
        replies: list[str] = []

        async def several() -> None:
            replies.extend(reply.text for reply in await asyncio.gather(*[model.ask(ASK) for _ in range(4)]))

        for _ in range(3):
            asyncio.run(several())
        threads = [threading.Thread(target=lambda: asyncio.run(several())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert replies == ["Score: 1"] * 24 and server.most_in_flight == 2


async def test_no_more_are_in_flight_than_allowed():
    with OpenAIServer(latency_s=0.5) as server:
        model = chat(server, concurrency=5)
        await asyncio.gather(*[model.ask(ASK) for _ in range(15)])
    assert server.most_in_flight == 5


async def test_who_waits_to_ask_again_is_in_nobodys_way():
    with OpenAIServer(fault=first("429-retry-after"), retry_after="3") as server:
        model = chat(server, concurrency=1)
        slow = asyncio.ensure_future(model.ask(ASK))
        while not model.usage.faults:
            await asyncio.sleep(0.01)
        failed_at = server.requests[0].ended
        quick = [await model.ask(ASK) for _ in range(2)]
        assert (not slow.done() or time.monotonic() - failed_at > 3) and len(quick) == 2
        assert (await slow).attempts == 2


async def test_a_caller_that_leaves_frees_its_slot():
    with OpenAIServer(fault=first("hang")) as server:
        model = chat(server, concurrency=1)
        task = asyncio.ensure_future(model.ask(ASK))
        while not server.requests:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await asyncio.wait_for(model.ask(ASK), 20)).attempts == 1
        while server.in_flight:  # the server sees it go
            await asyncio.sleep(0.01)


async def test_with_many_faults_no_reply_is_invented_and_no_slot_stands_idle(monkeypatch):
    """30 % of the responses go wrong. The ideal is the server's own record: its slots are never idle while work is left."""
    monkeypatch.setattr(chat_module, "BACKOFF_S", 0.02)
    slots, questions = 6, 72
    faults = seeded_faults(0.3, seed=3)
    with OpenAIServer(
        answer=lambda request: f"echo {request.text}", fault=faults, latency_s=0.4, retry_after="0.05"
    ) as server:
        model = chat(server, concurrency=slots, timeout_s=1.5, attempts=6)

        async def ask(question: str) -> str:
            try:
                return (await model.ask([{"role": "user", "content": question}])).text
            except ChatError as error:
                return error.reason

        asked = [f"question {number}" for number in range(questions)]
        answers = await asyncio.gather(*[ask(question) for question in asked])
    failed = [reply for reply in answers if not reply.startswith("echo")]
    assert set(failed) <= set(REASONS.values()) and len(failed) <= 2, "six attempts fail together once in 1,400"
    assert all(reply == f"echo {question}" for question, reply in zip(asked, answers) if reply not in failed)
    kinds = Counter(request.fault for request in server.requests if request.fault)
    late, counted = model.usage.faults["timeout"], sum(model.usage.faults.values())
    assert kinds.total() > 15 and counted >= kinds.total() and model.usage.attempts >= len(server.requests)
    # A busy machine makes others late too, which are counted as that and as nothing else.
    assert late >= kinds["hang"] and counted - late <= kinds.total() - kinds["hang"]
    busy: dict[str, float] = defaultdict(float)
    for request in server.requests:
        assert request.ended is not None
        busy[request.text] += request.ended - request.began
    ideal = sum(busy.values()) / slots + max(busy.values())  # no schedule of these requests is sure to end sooner
    took = max(request.ended or 0 for request in server.requests) - server.requests[0].began
    assert took <= 1.2 * ideal, f"{took:.2f} s, ideal {ideal:.2f} s"


async def test_an_outage_ends_for_all_callers_within_patience():
    with OpenAIServer(fault=outage_from(20)) as server:
        model = chat(server, concurrency=8, patience_s=2.0)
        began = time.monotonic()
        results = await asyncio.gather(*[model.ask(ASK) for _ in range(300)], return_exceptions=True)
        took = time.monotonic() - began
        assert sum(not isinstance(result, Exception) for result in results) == 20
        reasons = {result.reason for result in results if isinstance(result, ChatError)}
        assert reasons <= {"server_error", "down"} and model.usage.failures["down"] > 250
        assert len(server.requests) < 60, "it is not hammered"
        assert took < 15
        server.fault = lambda request: None
        await asyncio.sleep(1.1)
        assert (await model.ask(ASK)).text == "Score: 1", "and it is noticed when it is back"


async def test_a_short_outage_costs_no_reply():
    down = threading.Event()
    down.set()
    with OpenAIServer(fault=lambda request: "500" if down.is_set() else None) as server:
        model = chat(server, concurrency=16, patience_s=60.0, attempts=6)
        asking = [asyncio.ensure_future(model.ask(ASK)) for _ in range(64)]
        while len(server.requests) < 16:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)
        down.clear()
        assert {reply.text for reply in await asyncio.gather(*asking)} == {"Score: 1"}


async def test_nobody_listens():
    model = Chat("openai/judge", api_base="http://127.0.0.1:9/v1", patience_s=1.0, attempts=2)
    results = await asyncio.gather(*[model.ask(ASK) for _ in range(40)], return_exceptions=True)
    assert {type(result) for result in results} <= {ChatFailed, ChatDown}
    assert set(model.usage.failures) <= {"connection", "down"} and model.usage.replies == 0


async def test_retries_are_counted_and_not_logged(caplog):
    with OpenAIServer(fault=first("500")) as server:
        await chat(server).ask(ASK)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
