"""Policies over a network, against a real server: what they send, what they make of what comes back, what it cost."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agentvision import Agent, evaluate
from agentvision.chat import ChatRefused
from agentvision.data.glyphs import GlyphVQA
from agentvision.errors import PluginError
from agentvision.images import ImageStore, image_hash
from agentvision.journal import read_trajectories
from agentvision.policies._chat import ChatPolicy
from agentvision.policies.litellm import LitellmPolicy
from agentvision.policies.openai import OpenAIPolicy
from agentvision.policy import Completion, Request, SamplingParams, TrainablePolicy
from agentvision.rollout import run_episode
from agentvision.tool import ToolContext, tool
from agentvision.train.learner import make_accelerator, make_learner
from agentvision.types import Message, Sample, StopReason, ToolError, Trajectory

from ..glyph_server import GlyphModel, calls, pictures, says
from ..openai_server import OpenAIServer
from ..scripted import glyph_recipe

BOTH = pytest.mark.parametrize("kind", [OpenAIPolicy, LitellmPolicy])
TOOL = {"type": "function", "function": {"name": "crop", "description": "Crop.", "parameters": {"type": "object"}}}


def policy_at(server: OpenAIServer, kind: type[ChatPolicy] = OpenAIPolicy, **options: Any) -> ChatPolicy:
    return kind("openai/m" if kind is LitellmPolicy else "m", api_base=server.url, **options)


def samples() -> list[Sample]:
    return list(GlyphVQA(split="test", seed=0, size=20, columns=5, rows=3))


def asked(*, tools: bool = False, **sampling: Any) -> Request:
    return Request(
        session="g/0",
        group="g",
        messages=(Message("system", ("Be brief.",)), Message("user", ("Why?",))),
        views=(),
        segments=(),
        store=ImageStore(),
        sampling=SamplingParams(**sampling),
        tools=(TOOL,) if tools else (),
    )


async def episode(policy: ChatPolicy, sample: Sample, **env: Any) -> Trajectory:
    from agentvision import build
    from agentvision.policy import calls_natively

    settings = {"first_view": {"scale": 0.5}, "tools": ["resize_image"], **env}
    recipe, store = glyph_recipe(env=settings), ImageStore()
    tools = build.build_tools(recipe)
    make = build.env_maker(
        recipe, store=store, vision=build.vision_of(recipe, policy), tools=tools, native=calls_natively(policy)
    )
    return await run_episode(
        sample, env=make(), policy=policy, store=store, sampling=SamplingParams(temperature=0.0), group="e",
        tools=[each.schema for each in tools],
    )  # fmt: skip


@BOTH
@pytest.mark.parametrize("tools", ["text", "native"])
def test_an_ideal_model_at_the_end_of_the_wire_is_measured_as_one(kind: type[ChatPolicy], tools: Any, tmp_path) -> None:
    """The server finds each question by its pixels, so all pictures arrived whole; the numbers are those of the same policy
    without a wire."""
    with OpenAIServer(answer=GlyphModel(samples())) as server:
        policy = policy_at(server, kind, tools=tools, prices=(1.0, 2.0))
        result = evaluate(glyph_recipe(), policy=policy, n=8, out=tmp_path)
        asyncio.run(policy.close())
    metrics = result.metrics
    assert (metrics["accuracy"], metrics["format"], metrics["call_rate_easy"], metrics["call_rate_hard"]) == (
        1,
        1,
        0,
        1,
    )
    assert (
        metrics["stop"] == {"answered": 8}
        and 0 < metrics["n_hard"] < 8
        and metrics["tool_calls"] == {"ok": metrics["n_hard"]}
    )
    turns = len(server.requests)
    assert turns == 8 + metrics["n_hard"]
    assert metrics["usage"]["prompt_tokens"] == 10 * turns and metrics["usage"]["completion_tokens"] == 3 * turns
    assert metrics["usage"]["cost_usd"] == pytest.approx(16e-6 * turns) and "unpriced" not in metrics["usage"]
    assert metrics["output_tokens"] == pytest.approx(3 * turns / 8)
    read = [entry.trajectory for entry in read_trajectories(tmp_path / "evaluation")]
    assert read == list(result.trajectories) and read[0].turns[0].usage["cost_usd"] == pytest.approx(16e-6)
    assert all(("tools" in request.body) == (tools == "native") for request in server.requests)


@BOTH
async def test_a_native_conversation_is_the_protocols_and_speaks_of_no_tags(kind: type[ChatPolicy]) -> None:
    hard = next(sample for sample in samples() if sample.meta["needs_original"])
    with OpenAIServer(answer=GlyphModel(samples())) as server:
        trajectory = await episode(policy_at(server, kind, tools="native", detail="high"), hard)
    assert (trajectory.stop, trajectory.answer) == (StopReason.ANSWERED, hard.answer)
    assert trajectory.turns[0].parsed.think == "small" and trajectory.turns[0].parsed.problem is None
    first, second = (request.body for request in server.requests)
    assert [entry["function"]["name"] for entry in second["tools"]] == ["resize_image"]
    assert "<" not in first["messages"][0]["content"] and "resize_image" not in first["messages"][0]["content"]
    said, reply, shown = second["messages"][2:]
    assert said["tool_calls"][0]["id"] == "id0" == reply["tool_call_id"], "the provider's own"
    assert reply["role"] == "tool" and "<" not in reply["content"]
    assert shown["role"] == "user" and shown["content"][1]["image_url"]["detail"] == "high"
    assert [image_hash(image) for image in pictures(second)] == [view.image for view in trajectory.views]


async def test_a_call_repeated_word_for_word_has_an_id_of_its_own() -> None:
    """As a model does after an error. A conversation with one id twice is refused by providers."""
    again = [{**calls(("resize_image", {"image": 9})), "content": "again"} for _ in range(2)]
    for place, message in enumerate(again):
        message["tool_calls"][0]["id"] = f"own{place}"
    with OpenAIServer(answer=says(*again, "9")) as server:
        await episode(policy_at(server, tools="native"), samples()[0], max_turns=3)
    sent = server.requests[2].body["messages"]
    assert [message["tool_calls"][0]["id"] for message in sent if message["role"] == "assistant"] == ["own0", "own1"]
    assert [message["tool_call_id"] for message in sent if message["role"] == "tool"] == ["own0", "own1"]


async def test_a_text_conversation_is_what_the_protocol_rendered() -> None:
    hard = next(sample for sample in samples() if sample.meta["needs_original"])
    with OpenAIServer(answer=GlyphModel(samples())) as server:
        trajectory = await episode(policy_at(server), hard)
    sent = server.requests[1].body["messages"]
    assert [message["role"] for message in sent] == [message.role for message in trajectory.messages[:-1]]
    for message, rendered in zip(sent, trajectory.messages, strict=False):
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        assert "".join(part.get("text", "") for part in parts) == rendered.text
        assert [part["type"] for part in parts].count("image_url") == len(rendered.views)


async def test_an_image_is_encoded_once_for_all_turns_and_rollouts() -> None:
    hard = next(sample for sample in samples() if sample.meta["needs_original"])
    with OpenAIServer(answer=GlyphModel(samples())) as server:
        policy = policy_at(server)
        await asyncio.gather(*(episode(policy, hard) for _ in range(8)))
    assert len(server.requests) == 16 and policy._urls.encoded == 2


@BOTH
async def test_what_is_sampled_is_what_the_request_says(kind: type[ChatPolicy]) -> None:
    with OpenAIServer(answer=says("42")) as server:
        policy = policy_at(server, kind, settings={"presence_penalty": 0.5})
        await policy.complete(asked(temperature=0.0, max_tokens=7))
        await policy.complete(asked(temperature=0.7, top_p=0.9, top_k=5, seed=2**62))
        await policy.complete(asked(temperature=0.7, seed=2**62 + 1))
        await policy_at(server, kind, drop_params=("temperature", "seed")).complete(asked(temperature=0.7, seed=1))
    greedy, drawn, other, dropped = (request.body for request in server.requests)
    assert (greedy["temperature"], greedy["max_tokens"], greedy["presence_penalty"]) == (0.0, 7, 0.5)
    assert not {"seed", "top_p", "top_k", "tools"} & set(greedy)
    assert (drawn["temperature"], drawn["top_p"], drawn["top_k"]) == (0.7, 0.9, 5)
    assert 0 <= drawn["seed"] < 2**31 and drawn["seed"] != other["seed"]
    assert not {"seed", "temperature"} & set(dropped)


@BOTH
async def test_a_turn_at_its_limit_is_unfinished_be_it_empty(kind: type[ChatPolicy]) -> None:
    for words in ("<think>well", "", calls(("crop", '{"box": [1'))):
        with OpenAIServer(answer=says(words), finish="length") as server:
            policy = policy_at(server, kind, tools="native")
            completion = await policy.complete(asked(tools=True))
            assert not completion.ended and len(server.requests) == 1
            assert (await episode(policy, samples()[0])).stop is StopReason.LENGTH


@BOTH
async def test_what_a_model_will_not_say_is_its_turn_and_what_a_filter_keeps_is_not(kind: type[ChatPolicy]) -> None:
    refusal = {"role": "assistant", "content": None, "refusal": "I can't help with that."}
    with OpenAIServer(answer=says(refusal)) as server:
        completion = await policy_at(server, kind).complete(asked())
        assert completion.text == "I can't help with that." and completion.ended
        native = await episode(policy_at(server, kind, tools="native"), samples()[0])
        assert (native.stop, native.answer) == (StopReason.ANSWERED, "I can't help with that.")
    for words in ("", "Once upon"):
        with OpenAIServer(answer=says(words), finish="content_filter") as server:
            with pytest.raises(ChatRefused) as caught:
                await policy_at(server, kind).complete(asked())
            assert caught.value.reason == "filtered" and len(server.requests) == 1


async def test_nothing_is_a_malformed_turn_and_is_not_asked_for_again() -> None:
    with OpenAIServer(answer=says("")) as server:
        trajectory = await episode(policy_at(server), samples()[0])
    assert trajectory.stop is StopReason.MALFORMED and len(server.requests) == 2
    assert server.requests[1].body["messages"][2]["content"], "no provider takes an empty message"


@pytest.mark.parametrize(
    ("arguments", "outcome"),
    [('{"scale": ', "bad_json"), ("[]", "bad_call"), ('{"scale": 3}', ToolError.BAD_ARGUMENTS)],
)
async def test_a_call_that_cannot_be_is_data_and_the_model_is_told(arguments: str, outcome: str) -> None:
    with OpenAIServer(answer=says(calls(("resize_image", arguments)), "9")) as server:
        trajectory = await episode(policy_at(server, tools="native"), samples()[0])
    first = trajectory.turns[0]
    assert outcome == (first.parsed.problem if first.tool is None else first.tool.error)
    assert trajectory.stop is StopReason.ANSWERED
    told = server.requests[1].body["messages"]
    assert [message["role"] for message in told[2:]] == ["assistant", "user" if first.tool is None else "tool"]
    assert "Error: " in told[3]["content"] and told[3].get("tool_call_id") == (None if first.tool is None else "c0")


async def test_of_several_calls_the_first_is_carried_out_and_the_rest_never_were() -> None:
    both = calls(("resize_image", {}), ("resize_image", {}))
    with OpenAIServer(answer=says(both, "9")) as server:
        trajectory = await episode(policy_at(server, tools="native"), samples()[0])
    assert [turn.usage.get("calls_dropped") for turn in trajectory.turns] == [1, None]
    assert trajectory.turns[0].tool is not None and trajectory.turns[0].tool.ok
    sent = server.requests[1].body["messages"]
    assert [call["id"] for call in sent[2]["tool_calls"]] == ["c0"]
    assert [message["role"] for message in sent].count("tool") == 1


async def test_a_server_that_cannot_call_tools_is_named_with_the_way_out() -> None:
    with OpenAIServer(fault=lambda request: "400", error='"auto" tool choice requires a parser') as server:
        with pytest.raises(ChatRefused, match=r"requires a parser.*policy\.options\.tools: text") as caught:
            await policy_at(server, tools="native").complete(asked(tools=True))
        assert caught.value.reason == "bad_request"
        with pytest.raises(ChatRefused) as caught:
            await policy_at(server).complete(asked(tools=True))
        assert "tools: text" not in str(caught.value) and "tools" not in server.requests[-1].body


async def test_without_tools_on_offer_a_native_policy_reads_text() -> None:
    with OpenAIServer(answer=says("<think>a</think>\n<answer>9</answer>")) as server:
        policy = policy_at(server, tools="native")
        trajectory = await episode(policy, samples()[0], tools=[], max_turns=1)
    assert trajectory.turns[0].parsed.problem is None and "<think>" in server.requests[0].body["messages"][0]["content"]


async def test_usage_that_nobody_told_is_not_there() -> None:
    with OpenAIServer(usage=None, answer=says("9")) as server:
        assert (await policy_at(server).complete(asked())).usage == {}
        server.usage = (10, 3)
        assert (await policy_at(server).complete(asked())).usage == {"prompt_tokens": 10, "completion_tokens": 3}


def test_money_runs_out_and_the_evaluation_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """The ceiling holds for the whole evaluation: what is asked before it counts, the rest is broken, not wrong."""
    with OpenAIServer(answer=GlyphModel(samples()), usage=(2000, 100)) as server:
        policy = policy_at(server, prices=(100.0, 100.0), max_cost_usd=2.0, concurrency=1)
        metrics = evaluate(glyph_recipe(), policy=policy, n=8).metrics
    assert metrics["accuracy"] == 1 and 0 < metrics["broken"] < 8
    assert metrics["usage"]["cost_usd"] <= 2.0
    assert "CostCeiling" in caplog.text and "max_cost_usd" in caplog.text


def test_pictures_and_their_tokens_are_by_the_rule_of_the_recipes_model_whoever_answers() -> None:
    recipe = glyph_recipe(model={"path": "package://tiny-vlm", "max_pixels": 4096})
    with OpenAIServer(answer=says("<think>a</think><answer>b</answer>")) as server:
        result = evaluate(recipe, policy=policy_at(server), n=1)
    (image,), (view,) = pictures(server.requests[0].body), result.trajectories[0].views
    assert (
        image.size == view.size and image.width % 16 == image.height % 16 == 0 and view.size[0] * view.size[1] <= 4096
    )
    assert view.tokens == view.size[0] * view.size[1] // 256


@BOTH
def test_training_refuses_it_by_name(kind: type[ChatPolicy]) -> None:
    name = "openai" if kind is OpenAIPolicy else "litellm"
    options = {"model": "openai/m", "api_base": "http://127.0.0.1:9/v1"}
    recipe = glyph_recipe(policy={"backend": name, "options": options})
    with pytest.raises(PluginError, match=f"'{name}' cannot be trained: it does not give the exact ids"):
        make_learner(recipe, make_accelerator(recipe), model=None, reference=None)
    assert not kind.trainable and not isinstance(kind(**options), TrainablePolicy)


@tool
def shout(ctx: ToolContext, word: str = "hey") -> str:
    """Shout a word."""
    return word.upper()


def test_an_agent_serves_threads_and_event_loops_with_tools_of_ones_own() -> None:
    with OpenAIServer(answer=says(calls(("shout", {"word": "hi"})), "HI")) as server:
        agent = Agent.from_recipe(glyph_recipe(), policy=policy_at(server, tools="native"), tools=[shout])
        answer = agent.run_sync(samples()[0].images[0], "What?")
        assert answer.text == "HI"
        assert json.loads(json.dumps(server.requests[1].body))["messages"][-1]["content"] == "HI"
        assert agent.run_sync(samples()[1].images[0], "Again?").text == "HI"
        asyncio.run(agent.close())


async def test_what_is_kept_of_an_episode_goes_with_it() -> None:
    with OpenAIServer(answer=says(calls(("resize_image", {})), "9")) as server:
        policy = policy_at(server, tools="native")
        await policy.complete(asked(tools=True))
        assert policy._calls
        await policy.release("g/0")
        assert not policy._calls
        assert isinstance(await policy.complete(asked(tools=True)), Completion)
