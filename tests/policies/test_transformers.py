"""The in-process policy: exact against the uncached forward pass, whatever the batch, the cache or the failure."""

import asyncio
import copy
import threading
import time
from dataclasses import replace

import pytest
import torch

from agentvision.errors import ModelError
from agentvision.policies.transformers import TransformersPolicy
from agentvision.policy import Policy, SamplingParams
from agentvision.tokens import token_count
from agentvision.types import ImageSegment, TextSegment

from .policy_cases import picture, recorded_logprobs, uncached_logprobs


@pytest.fixture
async def policy(model, codec):
    policy = TransformersPolicy(model, codec)
    yield policy
    await policy.close()


@pytest.fixture
def head(model):
    """Let a test change the logits: `head(lambda logits: …)`; undone afterwards."""
    hooks = []

    def change(function):
        hooks.append(model.lm_head.register_forward_hook(lambda module, inputs, logits: function(logits)))

    yield change
    for hook in hooks:
        hook.remove()


def assert_exact(model, codec, talk, *, temperature=1.0):
    assert len(recorded_logprobs(talk)) == sum(len(c.ids) for c in talk.completions)
    expected = uncached_logprobs(model, codec, talk, temperature=temperature)
    torch.testing.assert_close(recorded_logprobs(talk), expected, atol=1e-4, rtol=0)


async def run(talk, policy, turns, *, image_every=True, **sampling):
    for k in range(turns):
        await talk.turn(policy, **({"max_tokens": 4 + 3 * k + talk.seed % 4} | sampling))
        if k + 1 < turns:
            talk.reply(image=picture(100 + talk.seed, width=64) if image_every else None)


# --- exactness ------------------------------------------------------------------------------------------------------


async def test_it_is_a_policy_that_can_be_trained(policy):
    assert isinstance(policy, Policy)
    assert policy.trainable


async def test_mixed_batches_equal_the_uncached_forward(policy, model, codec, talk):
    """Episodes with 0 to 2 images and 1 to 3 turns, at two temperatures, finishing and going on side by side."""
    talks = [
        talk(session=f"s/{k}", seed=k, question="What " + "is it? " * (k % 5), images=[picture(k)] * (k % 2))
        for k in range(12)
    ]
    warmth = [(1.0, 0.6)[k % 2] for k in range(12)]
    await asyncio.gather(
        *(run(t, policy, 1 + k % 3, image_every=k % 4 > 0, temperature=warmth[k]) for k, t in enumerate(talks))
    )
    for t, temperature in zip(talks, warmth, strict=True):
        assert_exact(model, codec, t, temperature=temperature)


async def test_a_rollout_is_the_same_alone_and_in_a_batch(policy, model, codec, talk):
    def conversations():
        return [talk(session=f"s/{k}", seed=k, images=[picture(k % 3)]) for k in range(6)]

    together, alone = conversations(), conversations()
    await asyncio.gather(*(run(t, policy, 2) for t in together))
    policy.weights_changed()
    for t in alone:
        await run(t, policy, 2)
        await policy.release(t.session)
    for a, b in zip(together, alone, strict=True):
        assert [c.ids for c in a.completions] == [c.ids for c in b.completions]
        torch.testing.assert_close(recorded_logprobs(a), recorded_logprobs(b), atol=1e-4, rtol=0)


async def test_seed_and_turn_choose_the_stream(policy, talk):
    a, b, c = talk(session="a", seed=1), talk(session="b", seed=1), talk(session="c", seed=2)
    await asyncio.gather(*(run(t, policy, 2, image_every=False, max_tokens=16) for t in (a, b, c)))
    assert [x.ids for x in a.completions] == [x.ids for x in b.completions]
    assert a.completions[0].ids != c.completions[0].ids
    assert a.completions[0].ids != a.completions[1].ids


async def test_temperature_zero_is_greedy_and_records_log_probs_at_one(policy, model, codec, talk, head):
    greedy, warm = talk(session="greedy", images=[picture()]), talk(session="warm", images=[picture()], seed=5)
    await asyncio.gather(greedy.turn(policy, temperature=0.0), warm.turn(policy))
    assert_exact(model, codec, greedy)
    assert_exact(model, codec, warm)
    again = talk(session="again", images=[picture()], seed=9)
    await again.turn(policy, temperature=0.0)
    assert again.completions[0].ids == greedy.completions[0].ids


async def test_top_k_and_top_p_record_the_distribution_sampled_from(policy, talk):
    one, most, nucleus = talk(session="1"), talk(session="2"), talk(session="3")
    k1, greedy, p = await asyncio.gather(
        one.turn(policy, top_k=1), most.turn(policy, temperature=0.0), nucleus.turn(policy, top_p=1e-6)
    )
    assert k1.ids == greedy.ids == p.ids
    assert k1.logprobs == p.logprobs == (0.0,) * len(k1.ids)


async def test_half_precision_runs(codec, model, talk):
    policy = TransformersPolicy(copy.deepcopy(model).to(torch.bfloat16), codec)
    t = talk(images=[picture()])
    await run(t, policy, 2)
    assert torch.isfinite(recorded_logprobs(t)).all()
    await policy.close()


# --- what is computed once ------------------------------------------------------------------------------------------


async def test_a_group_prefills_its_prompt_and_its_image_once(policy, model, codec, talk):
    store = None
    talks = []
    for k in range(8):
        talks.append(talk(store=store, session=f"g/{k}", seed=k, images=[picture()]))
        store = talks[0].store
    prompt = token_count(talks[0].segments)
    await asyncio.gather(*(t.turn(policy) for t in talks))
    assert policy.stats.prefilled_tokens == prompt
    assert policy.stats.reused_tokens == 7 * prompt
    assert policy.stats.vision_images == 1
    assert len({t.completions[0].ids for t in talks}) > 1
    for t in talks:
        assert_exact(model, codec, t)


async def test_a_sibling_that_comes_late_finds_the_prompt(policy, model, codec, talk):
    first, late = talk(session="g/0", images=[picture()]), talk(session="g/1", images=[picture()], seed=3)
    await run(first, policy, 2)
    await policy.release(first.session)
    before = policy.stats.prefilled_tokens
    await late.turn(policy)
    assert policy.stats.prefilled_tokens == before
    assert_exact(model, codec, late)


async def test_a_later_turn_prefills_only_what_is_new(policy, model, codec, talk):
    t = talk(images=[picture(1)])
    await t.turn(policy)
    held = token_count(t.segments) - 1  # the last token sampled has not been through the model
    t.reply(image=picture(2, width=64))
    completion = await t.turn(policy)
    assert completion.usage["reused_tokens"] == held
    assert completion.usage["prefilled_tokens"] == token_count(t.segments) - len(completion.ids) - held
    assert policy.stats.vision_images == 2
    assert_exact(model, codec, t)


async def test_a_ledger_that_differs_from_the_cache_is_prefilled_afresh(policy, model, codec, talk):
    t = talk(images=[picture(1)])
    await t.turn(policy)
    other = talk(images=[picture(7)], question="Something else?")
    other.session = t.session
    completion = await other.turn(policy)
    shared = len(t.segments[0].ids)  # the system's words, up to the image
    assert completion.usage["reused_tokens"] == shared
    assert_exact(model, codec, other)


async def test_images_of_equal_size_are_told_apart(policy, model, codec, talk):
    a, b = talk(session="a", images=[picture(1)]), talk(session="b", images=[picture(2)])
    await a.turn(policy)
    await b.turn(policy)
    assert policy.stats.vision_images == 2
    assert_exact(model, codec, b)


# --- weights --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def changing(model, codec):
    """A policy over a copy of the model, and a function that changes the copy's weights."""
    mine = copy.deepcopy(model)
    policy = TransformersPolicy(mine, codec)

    def change():
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in mine.parameters():
                p.add_(0.1 * p.std().nan_to_num(0.0) * torch.randn(p.shape, generator=generator))
        policy.weights_changed()

    yield policy, change
    await policy.close()


async def test_nothing_computed_by_older_weights_is_used(changing, codec, talk):
    policy, change = changing
    old, sibling = talk(session="g/0", images=[picture()]), talk(session="g/1", images=[picture()])
    await old.turn(policy)
    change()
    assert policy.version == 1
    old.reply(image=picture(3))
    await asyncio.gather(old.turn(policy), sibling.turn(policy))
    assert [c.version for c in old.completions] == [0, 1]
    assert_exact(policy.model, codec, sibling)
    expected = uncached_logprobs(policy.model, codec, old)[len(old.completions[0].ids) :]
    torch.testing.assert_close(torch.tensor(old.completions[1].logprobs), expected, atol=1e-4, rtol=0)
    assert policy.stats.vision_images == 3


async def test_embeddings_outlive_the_weights_when_the_vision_tower_is_frozen(model, codec, talk):
    policy = TransformersPolicy(model, codec, vision_frozen=True)
    for session in ("a", "b"):
        t = talk(session=session, images=[picture()])
        await t.turn(policy)
        assert_exact(model, codec, t)
        policy.weights_changed()
    assert policy.stats.vision_images == 1
    await policy.close()


async def test_a_turn_goes_on_under_new_weights(changing, codec, talk, head):
    policy, change = changing
    gate = threading.Event()

    def wait_in_the_middle(module, inputs, logits):
        if policy.stats.decode_steps == 3:
            gate.wait(20)

    policy.model.lm_head.register_forward_hook(wait_in_the_middle)
    t = talk(images=[picture()])
    turn = asyncio.create_task(t.turn(policy, max_tokens=10))
    while policy.stats.decode_steps < 3:
        await asyncio.sleep(0.005)
    before = copy.deepcopy(policy.model)
    change()
    gate.set()
    completion = await turn
    assert len(completion.ids) == 10
    assert policy.stats.prefill_calls == 2
    old, new = uncached_logprobs(before, codec, t), uncached_logprobs(policy.model, codec, t)
    recorded = recorded_logprobs(t)
    torch.testing.assert_close(recorded[:5], old[:5], atol=1e-4, rtol=0)
    torch.testing.assert_close(recorded[5:], new[5:], atol=1e-4, rtol=0)
    assert (old[5:] - new[5:]).abs().max() > 1e-2


async def test_a_copy_in_another_type_follows_the_weights(model, codec, talk):
    mine = copy.deepcopy(model)
    policy = TransformersPolicy(mine, codec, compute_dtype="bfloat16")
    for version in range(2):
        t = talk(session=f"{version}", images=[picture()])
        await t.turn(policy)
        error = (recorded_logprobs(t) - uncached_logprobs(mine, codec, t)).abs()
        assert 0 < error.mean() < 0.1
        assert {p.dtype for p in mine.parameters()} == {torch.float32}
        with torch.no_grad():
            mine.lm_head.weight.mul_(3.0)
        policy.weights_changed()
    await policy.close()


def test_a_type_that_does_not_exist_is_a_clear_error(model, codec):
    with pytest.raises(ModelError, match="'bf61'"):
        TransformersPolicy(model, codec, compute_dtype="bf61")


async def test_a_model_left_in_training_mode_samples_in_evaluation_mode(changing, codec, talk):
    policy, _ = changing
    policy.model.train()
    t = talk()
    await t.turn(policy)
    assert not policy.model.training
    assert_exact(policy.model, codec, t)


# --- ends -----------------------------------------------------------------------------------------------------------


async def test_banned_ids_are_never_sampled_however_likely(policy, codec, talk, head):
    head(lambda logits: logits + 100 * torch.isin(torch.arange(logits.shape[-1]), torch.tensor(codec.banned_ids)))
    talks = [talk(session=f"{k}", seed=k, images=[picture()]) for k in range(4)]
    await asyncio.gather(*(t.turn(policy, max_tokens=64, temperature=float(t.seed != 3)) for t in talks))
    sampled = {i for t in talks for i in t.completions[0].ids}
    assert not sampled & set(codec.banned_ids)
    assert torch.cat([recorded_logprobs(t) for t in talks]).isfinite().all()


async def test_a_model_that_never_stops_ends_at_its_limit(policy, codec, talk, head):
    head(lambda logits: logits - 100 * torch.isin(torch.arange(logits.shape[-1]), torch.tensor(codec.stop_ids)))
    completion = await talk().turn(policy, max_tokens=100)
    assert len(completion.ids) == len(completion.logprobs) == 100
    assert not completion.ended


async def test_an_end_token_ends_the_turn_and_is_part_of_it(policy, model, codec, talk, head):
    head(lambda logits: logits + 100 * torch.isin(torch.arange(logits.shape[-1]), torch.tensor(codec.stop_ids)))
    t = talk(images=[picture()])
    completion = await t.turn(policy)
    assert completion.ids == (codec.stop_ids[0],)
    assert completion.ended
    assert completion.text == ""
    t.reply(image=picture(1))
    await t.turn(policy)
    assert_exact(model, codec, t)


async def test_rows_past_the_tokenizer_are_never_sampled(model, codec, talk, head):
    """The model's embedding may be padded beyond what the codec knows."""
    small = copy.copy(codec)
    small.vocab_size = codec.vocab_size - 3
    head(lambda logits: logits + 100 * (torch.arange(logits.shape[-1]) >= small.vocab_size))
    policy = TransformersPolicy(model, small)
    completion = await talk().turn(policy, max_tokens=30)
    assert max(completion.ids) < small.vocab_size
    await policy.close()


# --- limits and failures --------------------------------------------------------------------------------------------


async def test_more_sessions_than_rows_take_turns(model, codec, talk):
    policy = TransformersPolicy(model, codec, max_rows=2, prefill_tokens=40)
    talks = [talk(session=f"{k}", seed=k, images=[picture(k)]) for k in range(6)]

    async def whole(t):
        await run(t, policy, 2)
        await policy.release(t.session)

    await asyncio.wait_for(asyncio.gather(*(whole(t) for t in talks)), 60)
    for t in talks:
        assert_exact(model, codec, t)
    await policy.close()


async def test_a_session_that_is_never_released_gives_way(model, codec, talk):
    policy = TransformersPolicy(model, codec, max_rows=1)
    first, second = talk(session="a", images=[picture(1)]), talk(session="b", images=[picture(2)])
    await first.turn(policy)
    await asyncio.wait_for(second.turn(policy), 30)
    assert policy.stats.evicted_sessions == 1
    first.reply()
    await asyncio.wait_for(first.turn(policy), 30)
    assert_exact(model, codec, first)
    await policy.close()


async def test_other_coroutines_go_on_while_a_turn_is_sampled(policy, talk, head):
    head(lambda logits: time.sleep(0.01))
    turn = asyncio.create_task(talk().turn(policy, max_tokens=30))
    ticks = 0
    while not turn.done():
        await asyncio.sleep(0.005)
        ticks += 1
    assert ticks > 15


async def test_a_cancelled_turn_leaves_its_row_and_the_others_alone(model, codec, talk, head):
    policy = TransformersPolicy(model, codec, max_rows=3)
    head(lambda logits: time.sleep(0.002))
    endless = [asyncio.create_task(talk(session=f"e{k}").turn(policy, max_tokens=10_000)) for k in range(2)]
    t = talk(session="good", images=[picture()])
    going = asyncio.create_task(t.turn(policy, max_tokens=40))
    await asyncio.sleep(0.1)
    for task in endless:
        task.cancel()
    results = await asyncio.gather(*endless, return_exceptions=True)
    assert all(isinstance(r, asyncio.CancelledError) for r in results)
    await going
    assert_exact(model, codec, t)
    others = [talk(session=f"n{k}", seed=k) for k in range(2)]
    await asyncio.wait_for(asyncio.gather(*(o.turn(policy) for o in others)), 30)
    assert policy.stats.evicted_sessions == 0
    await policy.close()


async def test_releasing_a_session_ends_its_turn(policy, talk, head):
    head(lambda logits: time.sleep(0.002))
    turn = asyncio.create_task(talk(session="a").turn(policy, max_tokens=10_000))
    await asyncio.sleep(0.1)
    await policy.release("a")
    with pytest.raises(RuntimeError, match="'a' was released"):
        await asyncio.wait_for(turn, 20)


async def test_memory_goes_back_when_no_session_is_left(policy, model, codec, talk, monkeypatch):
    monkeypatch.setattr("agentvision.policies._rows._KEEP_BYTES", 0)
    for session in ("a", "b"):
        t = talk(session=session, images=[picture()])
        await run(t, policy, 2)
        assert_exact(model, codec, t)
        await policy.release(session)
        while policy._engine.is_large:
            await asyncio.sleep(0.01)


async def test_a_failing_engine_fails_its_requests_and_goes_on(policy, model, codec, talk):
    def fail(module, inputs, logits):
        if policy.stats.decode_steps == 2:
            policy.stats.decode_steps += 1
            raise RuntimeError("out of memory")

    hook = model.lm_head.register_forward_hook(fail)
    talks = [talk(session=f"{k}", images=[picture()]) for k in range(3)]
    results = await asyncio.gather(*(t.turn(policy) for t in talks), return_exceptions=True)
    hook.remove()
    assert [str(r) for r in results] == ["out of memory"] * 3
    t = talk(session="0", images=[picture()])
    await run(t, policy, 2)
    assert_exact(model, codec, t)


async def test_an_image_that_is_missing_fails_its_request_alone(policy, model, codec, talk):
    good, bad, sibling = (talk(session=s, images=[picture(n)]) for s, n in (("a", 1), ("b", 900), ("c", 900)))
    bad.store.discard([bad.views[0].image])
    sibling.store = bad.store
    results = await asyncio.gather(*(t.turn(policy) for t in (good, bad, sibling)), return_exceptions=True)
    assert [isinstance(r, Exception) for r in results] == [False, True, True]
    assert_exact(model, codec, good)
    again = talk(session="b", images=[picture(900)])
    await again.turn(policy)
    assert_exact(model, codec, again)


async def test_weights_that_diverged_are_an_error_of_the_turn(policy, talk, head):
    head(lambda logits: torch.full_like(logits, torch.nan))
    with pytest.raises(ModelError, match="not finite"):
        await talk().turn(policy)


@pytest.mark.parametrize(
    "broken",
    [
        lambda r: replace(r, segments=()),
        lambda r: replace(r, segments=(TextSegment((10**6,)),)),
        lambda r: replace(r, sampling=SamplingParams(max_tokens=0)),
        lambda r: replace(r, sampling=SamplingParams(temperature=-1.0)),
        lambda r: replace(r, segments=(*r.segments, ImageSegment(1, "ab" * 32, (1, 4, 4), 3))),
    ],
)
async def test_an_impossible_request_is_refused_and_harms_nobody(policy, model, codec, talk, broken):
    good = talk(session="good")
    results = await asyncio.gather(
        policy.complete(broken(talk(session="bad").request())), good.turn(policy), return_exceptions=True
    )
    assert isinstance(results[0], (ValueError, KeyError))
    assert_exact(model, codec, good)


async def test_closing_fails_what_still_waits(model, codec, talk, head):
    policy = TransformersPolicy(model, codec, max_rows=1)
    head(lambda logits: time.sleep(0.005))
    turns = [asyncio.create_task(talk(session=f"{k}").turn(policy, max_tokens=10_000)) for k in range(3)]
    await asyncio.sleep(0.05)
    await asyncio.wait_for(policy.close(), 10)
    results = await asyncio.gather(*turns, return_exceptions=True)
    assert all("closed" in str(r) for r in results)
    with pytest.raises(RuntimeError, match="closed"):
        await talk().turn(policy)


def test_several_event_loops_may_share_a_policy(model, codec, talk):
    policy = TransformersPolicy(model, codec)
    talks = [talk(session=f"{k}", seed=k, images=[picture(k)]) for k in range(4)]
    threads = [threading.Thread(target=lambda t=t: asyncio.run(run(t, policy, 2))) for t in talks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    asyncio.run(policy.close())
    for t in talks:
        assert_exact(model, codec, t)


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(model, codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)
    codec.image_processor.save_pretrained(folder)
    return folder


async def test_a_saved_model_samples_the_same(policy, saved, talk):
    loaded = TransformersPolicy.from_pretrained(saved, dtype="float32", device="cpu")
    a, b = talk(images=[picture()]), talk(images=[picture()])
    await asyncio.gather(run(a, policy, 2), run(b, loaded, 2))
    assert [c.ids for c in a.completions] == [c.ids for c in b.completions]
    await loaded.close()


def test_a_missing_model_is_a_clear_error(tmp_path):
    with pytest.raises(ModelError, match="no model folder"):
        TransformersPolicy.from_pretrained(tmp_path / "nothing")
    with pytest.raises(ModelError, match="no/such-model"):
        TransformersPolicy.from_pretrained("no/such-model")


def test_a_broken_model_is_a_clear_error(saved, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(saved, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="broken"):
        TransformersPolicy.from_pretrained(broken)


def test_a_model_of_another_family_is_refused(codec):
    from torch import nn

    with pytest.raises(ModelError, match="family"):
        TransformersPolicy(nn.Linear(2, 2), codec)
