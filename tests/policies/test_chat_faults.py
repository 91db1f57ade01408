"""What networks, providers and wrong settings do to a policy, and that no key is anywhere to be read."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import pytest

from agentvision import evaluate
from agentvision.chat import ChatRefused, ChatSetupError
from agentvision.errors import RecipeError, RunError
from agentvision.evaluate.run import EvalResult
from agentvision.preflight import preflight, problems
from agentvision.recipe import Recipe

from ..glyph_server import GlyphModel, pictures
from ..openai_server import FAULTS, OpenAIServer, Request
from ..scripted import glyph_recipe
from .test_chat_policy import BOTH, asked, policy_at, samples

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)


def recipe_at(server: OpenAIServer | None = None, backend: str = "openai", **options: Any) -> Recipe:
    address = {} if server is None else {"api_base": server.url}
    name = "openai/m" if backend == "litellm" else "m"
    return glyph_recipe(policy={"backend": backend, "options": {"model": name, **address, **options}})


def evaluated(server: OpenAIServer, **options: Any) -> EvalResult:
    return evaluate(recipe_at(server, **options), n=6)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_changes_nothing_but_the_time(fault: str) -> None:
    """Each turn's first request fails (the first of all hangs); each is sent again, and no turn is lost or doubled."""
    seen: set[str] = set()

    def failing(request: Request) -> str | None:
        first = (body := json.dumps(request.body)) not in seen and (fault != "hang" or not seen)
        seen.add(body)
        return fault if first else None

    with OpenAIServer(answer=GlyphModel(samples()), fault=failing, retry_after="0") as server:
        metrics = evaluated(server, call_timeout_s=8.0 if fault == "hang" else 120.0, patience_s=120.0).metrics
    assert metrics["accuracy"] == 1 and metrics["stop"] == {"answered": 6}
    assert metrics["turns"] * 6 == len(seen) == sum(request.fault is None for request in server.requests)


async def test_a_wait_that_the_provider_asks_for_is_kept() -> None:
    first = lambda request: "429-retry-after" if request.index == 0 else None  # noqa: E731
    with OpenAIServer(fault=first, retry_after="1.5") as server:
        await policy_at(server).complete(asked())
    refused, again = server.requests
    assert refused.ended is not None and again.began - refused.ended >= 1.5


@BOTH
@pytest.mark.parametrize(
    ("status", "reason", "fix"),
    [("401", "unauthorised", "MY_KEY"), ("404", "not_found", "model's name"), ("400", "bad_request", "retrying")],
)
async def test_what_can_never_work_is_one_request_and_says_what_to_do(kind, status, reason, fix, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with OpenAIServer(fault=lambda request: status) as server:
        with pytest.raises(ChatRefused, match=fix) as caught:
            await policy_at(server, kind, api_key_env="MY_KEY").complete(asked())
        assert caught.value.reason == reason and len(server.requests) == 1
        assert server.requests[0].headers["authorization"] == f"Bearer {SECRET}"


def test_an_evaluation_of_which_nothing_ran_is_one_line_with_the_reason() -> None:
    with OpenAIServer(fault=lambda request: "404", error="no such model") as server, pytest.raises(RunError) as caught:
        evaluated(server)
    assert "no such model" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["openai", "litellm"])
@pytest.mark.parametrize("fault", ["401", "500", "reset", "wrong-shape"])
def test_no_key_is_in_errors_logs_or_results(backend: str, fault: str, tmp_path, monkeypatch, caplog, capfd) -> None:
    """Nor what a provider repeats of one. Only second turns fail, so there are results."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", SECRET)

    def failing(request: Request) -> str | None:
        return fault if len(pictures(request.body)) > 1 else None

    said = f"bad key {SECRET}, sk-proj-abcdefghijkl"
    with OpenAIServer(answer=GlyphModel(samples()), fault=failing, error=said) as server:
        recipe = recipe_at(server, backend, api_key_env="MY_KEY", attempts=1)
        result = evaluate(recipe, n=8, out=tmp_path)
    assert 0 < result.metrics["broken"] < 8
    texts = [caplog.text, *capfd.readouterr(), *(path.read_text() for path in tmp_path.rglob("*.json*"))]
    texts += [t.error for t in result.trajectories]
    for text in texts:
        assert SECRET not in text and "abcdefghijkl" not in text


def test_a_missing_key_is_known_before_a_question_is_asked_but_is_no_mistake_of_the_recipe(monkeypatch) -> None:
    recipe = recipe_at()
    assert not list(problems(recipe))
    with pytest.raises(ChatSetupError, match="set OPENAI_API_KEY"):
        preflight(recipe)
    with pytest.raises(ChatSetupError, match="set MY_KEY to its API key"):
        preflight(recipe_at(api_key_env="MY_KEY"))
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    preflight(recipe)


async def test_a_server_of_ones_own_is_not_sent_the_key_of_openai(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with OpenAIServer() as server:
        await policy_at(server).complete(asked())
    assert SECRET not in str(server.requests[0].headers)


@pytest.mark.parametrize(
    ("backend", "options", "line"),
    [
        ("openai", {"api_bse": "x"}, "policy.options.api_bse: there is no setting 'api_bse'. Did you mean 'api_base'?"),
        ("openai", {"api_base": "here:80"}, "policy.options: api_base='here:80': write it as http://host:port/v1"),
        ("openai", {"tools": "both"}, "policy.options.tools: 'tools' must be 'text' or 'native'; not 'both'"),
        ("openai", {"attempts": 0}, "policy.options.attempts: 'attempts' must be greater than or equal to 1; not 0"),
        ("openai", {"settings": {"api_key": "x"}}, "policy.options: settings: api_key"),
        ("openai", {"api_base": "http://a/v1", "max_cost_usd": 1.0}, "policy.options: max_cost_usd=1.0: no price"),
        ("litellm", {"model": "weird"}, "policy.options: No provider is known for model='weird'"),
    ],
)
def test_a_wrong_setting_is_one_line_without_a_network(backend: str, options: dict[str, Any], line: str) -> None:
    (found,) = problems(recipe_at(None, backend, **options))
    assert line in found
    with pytest.raises(RecipeError):
        preflight(recipe_at(None, backend, **options))


def test_what_a_recipe_says_of_loading_a_model_is_no_business_of_a_policy_that_loads_none() -> None:
    recipe = recipe_at(api_base="http://127.0.0.1:9/v1", compute_dtype=None)
    assert not list(problems(recipe.model_copy(update={"model": recipe.model.model_copy(update={"dtype": "float32"})})))
