"""Names, keys, prices and what failures mean."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from agentvision.chat import Chat, ChatError, ChatFailed, ChatRefused, ChatSetupError
from agentvision.chat.endpoint import _retry_after
from tests.openai_server import OpenAIServer

ASK = [{"role": "user", "content": "Is it right?"}]
SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)


def test_importing_it_imports_no_litellm():
    code = "import sys, agentvision.chat; sys.exit('litellm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("openai/gpt-4o", "OPENAI_API_KEY"),
        ("anthropic/claude-sonnet-4-5", "ANTHROPIC_API_KEY"),
        ("gemini/gemini-2.5-flash", "GOOGLE_API_KEY or GEMINI_API_KEY"),
        ("groq/llama-3.1-8b-instant", "GROQ_API_KEY"),
    ],
)
def test_a_missing_key_is_named_before_anything_is_sent(model, names, monkeypatch):
    with pytest.raises(ChatSetupError, match=f"set {names}") as caught:
        Chat(model)
    assert caught.value.reason == "no_key"
    monkeypatch.setenv(names.split()[0], SECRET)
    assert SECRET not in repr(vars(Chat(model)))


def test_a_variable_of_ones_own_holds_the_key_or_is_named(monkeypatch):
    with pytest.raises(ChatSetupError, match="set MY_KEY"):
        Chat("openai/gpt-4o", api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "")
    with pytest.raises(ChatSetupError, match="set MY_KEY"):
        Chat("openai/gpt-4o", api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", SECRET)
    assert SECRET not in repr(Chat("openai/gpt-4o", api_key_env="MY_KEY")._endpoint)


async def test_a_server_of_ones_own_needs_no_key_and_is_not_sent_that_of_openai(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with OpenAIServer() as server:
        await Chat("openai/judge", api_base=server.url).ask(ASK)
        assert SECRET not in str(server.requests[0].headers)
        await Chat("openai/judge", api_base=server.url, api_key_env="OPENAI_API_KEY").ask(ASK)
        assert server.requests[1].headers["authorization"] == f"Bearer {SECRET}"
        await Chat("hosted_vllm/judge", api_base=server.url).ask(ASK)
        assert len(server.requests) == 3


@pytest.mark.parametrize("model", ["weird", "nosuch/gpt"])
def test_an_unknown_provider_is_an_error_with_the_form_that_works(model):
    with pytest.raises(ChatSetupError, match="openai/NAME and api_base") as caught:
        Chat(model)
    assert caught.value.reason == "unknown_provider"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"patience_s": -1}, "patience_s=-1"),
        ({"requests_per_minute": 0}, "requests_per_minute=0"),
        ({"prices": [1.0]}, "two numbers"),
        ({"settings": {"api_key": SECRET}}, "settings: api_key"),
        ({"max_cost_usd": 1.0}, "Give prices"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings, words):
    with pytest.raises(ChatSetupError, match=words) as caught:
        Chat("openai/judge", api_base="http://127.0.0.1:9/v1", **settings)
    assert SECRET not in str(caught.value)


def test_a_ceiling_goes_with_a_price_that_litellm_knows_or_that_is_given():
    assert Chat("openai/gpt-4o", api_base="http://127.0.0.1:9/v1", max_cost_usd=1.0).priced
    assert Chat("openai/judge", api_base="http://127.0.0.1:9/v1", max_cost_usd=1.0, prices=[0, 0]).priced
    assert not Chat("openai/judge", api_base="http://127.0.0.1:9/v1").priced


@pytest.mark.parametrize(
    ("status", "reason", "fix"),
    [
        ("400", "bad_request", "retrying cannot help"),
        ("401", "unauthorised", "the key in MY_KEY"),
        ("403", "forbidden", "the key in MY_KEY"),
        ("404", "not_found", "api_base"),
        ("422", "bad_request", "retrying cannot help"),
    ],
)
async def test_what_retrying_cannot_mend_is_asked_once_and_says_what_to_do(status, reason, fix, monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    with OpenAIServer(fault=lambda request: status) as server:
        model = Chat("openai/judge", api_base=server.url, api_key_env="MY_KEY")
        with pytest.raises(ChatRefused, match=fix) as caught:
            await model.ask(ASK)
    assert caught.value.reason == reason and len(server.requests) == 1
    assert f"fault {status}" in str(caught.value) and "litellm" not in str(caught.value)
    assert model.usage.failures == {reason: 1} and model.usage.retries == 0


async def test_a_quota_that_is_used_up_is_not_waited_for():
    with OpenAIServer(fault=lambda request: "429", error="over quota", code="insufficient_quota") as server:
        model = Chat("openai/judge", api_base=server.url)
        with pytest.raises(ChatRefused, match="credit") as caught:
            await model.ask(ASK)
    assert caught.value.reason == "no_credit" and len(server.requests) == 1


@pytest.mark.parametrize(
    "api_base", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://user:password-of-mine@host/v1"]
)
def test_an_address_that_cannot_work_is_refused_at_once(api_base):
    with pytest.raises(ChatSetupError, match="api_base") as caught:
        Chat("openai/judge", api_base=api_base)
    assert "password-of-mine" not in str(caught.value)


@pytest.mark.parametrize("fault", ["401", "400", "500", "wrong-shape", "reset", "429"])
async def test_no_secret_is_in_errors_or_logs(fault, monkeypatch, caplog, capfd):
    """Nor in what a provider repeats of them, nor in the exceptions behind an error."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", SECRET)
    with OpenAIServer(fault=lambda request: fault, error=f"bad key {SECRET}, sk-proj-abcdefghijkl") as server:
        model = Chat("openai/judge", api_base=server.url, api_key_env="MY_KEY", attempts=2)
        with pytest.raises(ChatError) as caught:
            await model.ask(ASK)
    error: BaseException | None = caught.value
    seen = [repr(model), caplog.text, *capfd.readouterr()]
    while error is not None:
        seen += [str(error), repr(error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    for text in seen:
        assert SECRET not in text and "abcdefghijkl" not in text


def test_retry_after_is_read_as_seconds_and_as_a_date():
    def header(value: str) -> float | None:
        return _retry_after({"retry-after": value})

    assert header("3") == 3 and header("0.5") == 0.5 and header("-1") == 0
    assert header("soon") is None and header("") is None and header("nan") is None and header("inf") is None
    assert _retry_after({}) is None and _retry_after(None) is None
    date = header(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert date is not None and 55 < date <= 60
    assert header("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert header("Wed, 21 Oct 2015 07:28:00") == 0, "a date without a zone is one in UTC"


async def test_the_wait_is_the_one_that_the_provider_asks_for_and_is_bounded():
    with OpenAIServer(
        fault=lambda request: "429-retry-after" if request.index == 0 else None, retry_after="2"
    ) as server:
        reply = await Chat("openai/judge", api_base=server.url).ask(ASK)
        first, second = server.requests
        assert first.ended is not None and second.began - first.ended >= 2 and reply.attempts == 2
    with OpenAIServer(fault=lambda request: "429-retry-after", retry_after="86400") as server:
        model = Chat("openai/judge", api_base=server.url, patience_s=0.5, attempts=2)
        with pytest.raises(ChatFailed) as caught:
            await model.ask(ASK)
    assert caught.value.reason == "rate_limited" and len(server.requests) == 2
    assert model.usage.faults == {"rate_limited": 2}, "the provider is alive: this opens no breaker"


async def test_another_providers_dialect_means_the_same(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)
    reasons = {"503": "server_error", "429-retry-after": "rate_limited", "401": "unauthorised"}
    reasons |= {"reset": "connection", "empty": "server_error"}  # litellm makes a status of its own of this one
    for fault, reason in reasons.items():
        with OpenAIServer(fault=lambda request, fault=fault: fault, path="/v1/messages") as server:
            model = Chat("anthropic/claude-sonnet-4-5", api_base=server.url.removesuffix("/v1"), attempts=1)
            with pytest.raises(ChatError) as caught:
                await model.ask(ASK)
            assert caught.value.reason == reason, caught.value
            # This dialect's client sends anew, once, on a connection that was closed under it.
            assert len(server.requests) == (2 if fault == "reset" else 1)
