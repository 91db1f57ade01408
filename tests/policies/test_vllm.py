"""The real engine in this process: exact ids and log-probs, prefixes and images shared, turns independent."""

import asyncio

import pytest

from agentvision.engine.probe import gap_of
from agentvision.engine.types import EngineError, EngineLost
from agentvision.errors import ModelError, PluginError
from agentvision.policies.vllm import VLLMPolicy
from agentvision.policy import TrainablePolicy
from agentvision.tokens import token_count, trainer_ids
from agentvision.train.batch import Example

from .policy_cases import assert_exact, picture, run
from .vllm_cases import answers_of, make_policy, talk_of, waits

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def policy():
    policy = make_policy()
    yield policy
    asyncio.run(policy.close())


def test_it_can_be_trained(policy):
    assert isinstance(policy, TrainablePolicy) and policy.trainable


async def test_turns_with_images_have_the_log_probs_of_the_module(policy):
    talks = [talk_of(policy, images=k % 4, seed=k) for k in range(8)]
    await asyncio.gather(*(run(talk, policy, 3) for talk in talks))
    for talk in talks:
        assert len(talk.completions) == 3
        assert_exact(policy.model, policy.codec, talk)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
async def test_log_probs_are_those_of_the_temperature(policy, temperature):
    talk = talk_of(policy, images=1, seed=3)
    completion = await policy.complete(talk.request(temperature=temperature))
    example = Example((*talk.segments, *completion.segments), advantage=0.0)
    assert gap_of(policy.model, policy.codec, [example], talk.store, temperature=temperature).max < 1e-4


async def test_a_seed_repeats_its_turn_whatever_else_runs(policy):
    alone = await policy.complete(talk_of(policy, seed=1).request(seed=5))
    crowd = [policy.complete(talk_of(policy, seed=k).request(seed=k)) for k in range(20)]
    among, *_ = await asyncio.gather(policy.complete(talk_of(policy, seed=1).request(seed=5)), *crowd)
    other = await policy.complete(talk_of(policy, seed=1).request(seed=6))
    assert among.ids == alone.ids != other.ids


async def test_greedy_is_greedy(policy):
    seeds = [await policy.complete(talk_of(policy, seed=2).request(temperature=0.0, seed=s)) for s in range(3)]
    assert len({c.ids for c in seeds}) == 1


async def test_banned_ids_are_never_sampled_and_a_stop_id_ends_the_turn(policy):
    turns = [policy.complete(talk_of(policy, seed=k).request(max_tokens=200, temperature=1.5)) for k in range(20)]
    for completion in await asyncio.gather(*turns):
        assert not set(completion.ids) & set(policy.codec.banned_ids)
        stops = [i for i in completion.ids if i in policy.codec.stop_ids]
        assert completion.ended == bool(stops) and (not stops or completion.ids[-1] == stops[0])


async def test_the_second_turn_finds_the_first_ones_prefix(policy):
    talk = talk_of(policy, images=3, seed=11, session="reuse")
    await talk.turn(policy)
    before = token_count(talk.segments)
    talk.reply(image=picture(3))
    completion = await talk.turn(policy)
    block = policy.engine.settings.arguments()["block_size"]
    assert completion.usage["reused_tokens"] >= before - before % block - block
    assert_exact(policy.model, policy.codec, talk)


async def test_a_group_preprocesses_its_image_once_and_shares_its_prefill(policy):
    store_talk = talk_of(policy, images=1, seed=21)
    before = policy.codec.preprocessed
    requests = [store_talk.request(seed=k) for k in range(16)]
    turns = await asyncio.gather(*(policy.complete(request) for request in requests))
    assert policy.codec.preprocessed == before + 1
    shared = [t.usage["reused_tokens"] for t in turns]
    assert sum(count > 0 for count in shared) >= 15


async def test_the_engine_expands_prompts_as_the_ledger_does(policy):
    for seed in range(10):
        talk = talk_of(policy, images=seed % 5, seed=seed)
        told = await policy.engine.expand(talk.segments, talk.store)
        assert list(told.ids) == trainer_ids(talk.segments, policy.codec.image_token_id)
        assert told.grids == tuple(s.grid for s in talk.segments if hasattr(s, "grid"))


def test_a_second_engine_in_one_process_is_refused(policy):
    with pytest.raises(ModelError, match="close that policy first"):
        make_policy()


async def test_a_cancelled_turn_leaves_the_engine(policy):
    turns = [asyncio.create_task(policy.complete(talk_of(policy, seed=k).request(max_tokens=600))) for k in range(4)]
    await asyncio.sleep(0.2)
    for turn in turns[:3]:
        turn.cancel()
    assert len((await turns[3]).ids) > 0
    for _ in range(100):
        if not (policy.engine._engine.has_unfinished_requests() or policy.engine._running):
            return
        await asyncio.sleep(0.05)
    pytest.fail("cancelled turns are still in the engine")


async def test_a_prompt_without_room_is_refused_alone(policy):
    long = talk_of(policy, seed=1)
    with pytest.raises(ValueError, match="room for"):
        await policy.complete(long.request(max_tokens=0))
    assert (await policy.complete(long.request(max_tokens=2))).ids


async def test_a_prompt_with_too_many_images_is_refused_alone(policy):
    limit = policy.engine.settings.max_images
    with pytest.raises(EngineError, match=f"{limit + 1} images, .* takes {limit}: raise policy.options.max_images"):
        await policy.complete(talk_of(policy, images=limit + 1).request(max_tokens=1))
    gap, _ = await answers_of(policy, [talk_of(policy)])
    assert gap < 1e-4


async def test_several_loops_may_use_it(policy):
    def ask():
        return asyncio.run(policy.complete(talk_of(policy, seed=5).request()))

    first, second = await asyncio.gather(asyncio.to_thread(ask), asyncio.to_thread(ask))
    assert first.ids == second.ids


async def test_an_engine_that_fails_fails_its_turns_and_all_later_ones_by_name(policy, monkeypatch):
    engine = policy.engine
    with monkeypatch.context() as patch:
        patch.setattr(engine._engine, "step", lambda: 1 / 0)
        with pytest.raises(EngineLost, match="division by zero"):
            await policy.complete(talk_of(policy).request())
        with pytest.raises(EngineLost, match="division by zero"):
            await policy.complete(talk_of(policy).request())
    engine._failure, engine._worker = None, None  # as it was: the other tests share it
    engine._running.clear()
    engine._engine.abort_request(list(engine._engine.output_processor.request_states), internal=True)
    assert (await policy.complete(talk_of(policy).request())).ids


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"placement": "server"}, "needs policy.endpoints"),
        ({"endpoints": ["http://localhost:1"]}, "belongs to policy.placement 'server'"),
        ({"placement": "server", "endpoints": ["http://localhost:1"], "api_key_env": "NOT_SET_HERE"}, "is not set"),
    ],
)
def test_placements_that_cannot_be_are_refused(options, says):
    with pytest.raises(PluginError, match=says):
        make_policy(**options)


def test_its_settings_are_in_the_constructor_of_recipes():
    import inspect

    assert {"placement", "endpoints", "context_tokens"} <= set(inspect.signature(VLLMPolicy.from_pretrained).parameters)


async def test_an_engine_that_rests_samples_again_after_the_next_sync(policy):
    """On a CPU there is no memory to give up: what is tested is that it stops, wakes and goes on."""
    await policy.rest()
    turn = asyncio.create_task(policy.complete(talk_of(policy, seed=9).request()))
    assert await waits(policy.engine, turn)
    await policy.weights_changed(policy.version + 1)
    completion = await turn
    assert {span.version for span in completion.versions} == {policy.version}
