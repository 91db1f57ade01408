"""The in-process policy: exact against the uncached forward pass, whatever the batch and the cache."""

import asyncio
import copy

import torch

from agentvision.policies.transformers import TransformersPolicy
from agentvision.policy import TrainablePolicy
from agentvision.tokens import token_count
from agentvision.train.lockstep import Batching

from .policy_cases import assert_exact, picture, recorded_logprobs, run

# --- exactness ------------------------------------------------------------------------------------------------------


async def test_it_is_a_policy_that_can_be_trained(policy):
    assert isinstance(policy, TrainablePolicy) and isinstance(policy, Batching)
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
    await policy.weights_changed(1)
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
