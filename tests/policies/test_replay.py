"""The policy without a model: scripts, recorded episodes, and ids that a ledger can hold."""

import pytest

from agentvision.errors import PluginError
from agentvision.policies.replay import RecordedTurn, ReplayPolicy, turns_of
from agentvision.policy import Policy
from agentvision.types import ParsedTurn, Sample, StopReason, TextSegment, Trajectory, Turn


async def test_a_script_is_said_turn_by_turn(codec, talk):
    policy = ReplayPolicy(["<think>one</think>", "two"], codec=codec)
    assert isinstance(policy, Policy)
    assert not policy.trainable
    t = talk()
    first = await t.turn(policy)
    t.reply()
    second = await t.turn(policy)
    assert (first.text, second.text) == ("<think>one</think>", "two")
    assert first.ids[-1] in codec.stop_ids
    assert first.logprobs == (0.0,) * len(first.ids)
    with pytest.raises(LookupError, match="after 2 turns"):
        await t.turn(policy)


async def test_scripts_go_by_session_then_group(talk):
    policy = ReplayPolicy({"g/1": ["mine"], "g": ["ours"]})
    assert (await policy.complete(talk(session="g/1", group="g").request())).text == "mine"
    assert (await policy.complete(talk(session="g/0", group="g").request())).text == "ours"
    with pytest.raises(LookupError, match="no episode 'x/0'"):
        await policy.complete(talk(session="x/0", group="x").request())


async def test_a_function_sees_the_request_and_an_exception_is_raised(talk):
    policy = ReplayPolicy(lambda request: f"{request.session}:{request.turn}")
    assert (await policy.complete(talk().request())).text == "s/0:0"
    with pytest.raises(RuntimeError, match="down"):
        await ReplayPolicy([RuntimeError("down")]).complete(talk().request())


async def test_without_a_codec_there_is_text_alone(talk):
    completion = await ReplayPolicy(["hello"]).complete(talk().request())
    assert (completion.text, completion.ids, completion.logprobs, completion.ended) == ("hello", (), (), True)


async def test_a_text_over_the_limit_is_cut_and_not_ended(codec, talk):
    completion = await ReplayPolicy(["a b c d e f g h"], codec=codec).complete(talk().request(max_tokens=3))
    assert len(completion.ids) == len(completion.logprobs) == 3
    assert not completion.ended
    assert completion.text == codec.decode(completion.ids)


async def test_control_tokens_in_a_script_are_plain_characters(codec, talk):
    completion = await ReplayPolicy(["<|image_pad|>"], codec=codec).complete(talk().request(max_tokens=99))
    assert not set(completion.ids) & set(codec.banned_ids)
    assert completion.text == "<|image_pad|>"


async def test_a_recorded_episode_keeps_its_ids_and_log_probs(codec, talk):
    ids = (*(codec.encode_text(c)[0] for c in "the"), codec.stop_ids[0])  # not what an encoder would make of the text
    recorded = Trajectory(
        sample=Sample("q", "?"),
        turns=(Turn("the", ParsedTurn()),),
        messages=(),
        views=(),
        stop=StopReason.ANSWERED,
        segments=(TextSegment((1, 2)), TextSegment(ids, sampled=True, logprobs=(-1.0, -2.0, -3.0, -4.0))),
        rollout=3,
    )
    policy = ReplayPolicy.from_trajectories([recorded], codec=codec)
    completion = await policy.complete(talk(session="q/3", group="q").request())
    assert completion.ids == ids
    assert completion.logprobs == (-1.0, -2.0, -3.0, -4.0)
    assert completion.ended
    alone = await ReplayPolicy.from_trajectories([recorded]).complete(talk(session="q/3", group="q").request())
    assert (alone.text, alone.ids) == ("the", ())


async def test_a_turn_that_two_versions_sampled_is_repeated_as_one(codec, talk):
    segments = (
        TextSegment((1, 2)),
        TextSegment((5, 6), sampled=True, logprobs=(-1.0, -2.0), version=3),
        TextSegment((7,), sampled=True, logprobs=(-3.0,), version=4),
        TextSegment((8,)),
        TextSegment((9,), sampled=True, logprobs=(-4.0,), version=4),
    )
    turns = (Turn("a", ParsedTurn()), Turn("b", ParsedTurn()))
    recorded = Trajectory(Sample("q", "?"), turns, (), (), StopReason.ANSWERED, segments=segments)
    assert [(t.ids, t.logprobs) for t in turns_of(recorded, codec=codec)] == [
        ((5, 6, 7), (-1.0, -2.0, -3.0)),
        ((9,), (-4.0,)),
    ]


async def test_a_turn_that_did_not_end_is_repeated_so(codec, talk):
    policy = ReplayPolicy([RecordedTurn("the", codec.encode_text("the"), (0.0,), ended=False)], codec=codec)
    assert not (await policy.complete(talk().request())).ended


def test_a_recipe_must_name_the_run():
    with pytest.raises(PluginError, match="set policy"):
        ReplayPolicy.from_pretrained("anything")
