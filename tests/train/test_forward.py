"""Log-probs of micro-batches against the model's own full forward, one trajectory at a time."""

import pytest
import torch

from agentvision.train.batch import Example, micro_batches
from agentvision.train.forward import SampledTokens, image_features
from agentvision.types import ImageSegment, TextSegment

from .conftest import BANNED, IMAGE_TOKEN, MERGE, image, ledgers, pixels, tiny_model


def oracle(model, segments, temperature):
    """(logprobs, entropy) of the sampled tokens through `model.forward` with ids and pixels, all logits."""
    ids, types, sampled = [], [], []
    for segment in segments:
        if isinstance(segment, ImageSegment):
            ids += [IMAGE_TOKEN] * segment.tokens
            types += [1] * segment.tokens
            sampled += [False] * segment.tokens
        else:
            ids += segment.ids
            types += [0] * len(segment.ids)
            sampled += [segment.sampled] * len(segment.ids)
    images = [pixels(s.image) for s in segments if isinstance(s, ImageSegment)]
    input_ids = torch.tensor([ids])
    logits = model(
        input_ids=input_ids,
        pixel_values=torch.cat([p.values for p in images]),
        image_grid_thw=torch.tensor([p.grid for p in images]),
        mm_token_type_ids=torch.tensor([types]),
    ).logits[0, :-1]
    logits = logits.clone() / temperature
    logits[:, list(BANNED)] = -torch.inf
    logprobs = logits.log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    mask = torch.tensor(sampled[1:])
    return logprobs.gather(1, input_ids[0, 1:, None])[:, 0][mask], entropy[mask]


def by_owner(batches, values):
    """Values of each example's tokens, in the order of the trajectory."""
    result = {}
    for batch, value_N in zip(batches, values, strict=True):
        for owner in batch.owners.unique().tolist():
            assert owner not in result
            result[owner] = value_N[batch.owners == owner]
    return result


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("max_tokens", [1, 150, 10_000])
def test_logprobs_and_entropy_equal_the_full_forward(share, attn, max_tokens):
    model = tiny_model(attn=attn)
    examples = [Example(segments) for segments in ledgers()]
    batches = micro_batches(examples, max_tokens=max_tokens, merge=MERGE, share=share, hidden=64)
    scorer = SampledTokens(model, temperature=0.7, banned_ids=BANNED, chunk_logits=500)
    with torch.no_grad():
        stats = [scorer(batch, pixels) for batch in batches]
        logprobs = by_owner(batches, [s.logprobs for s in stats])
        entropy = by_owner(batches, [s.entropy for s in stats])
        for index, example in enumerate(examples):
            expected, expected_entropy = oracle(model, example.segments, 0.7)
            torch.testing.assert_close(logprobs[index], expected, atol=2e-5, rtol=0)
            torch.testing.assert_close(entropy[index], expected_entropy, atol=2e-5, rtol=0)


@pytest.mark.parametrize("share", [False, True])
def test_targets_and_recorded_logprobs_are_the_ledgers(share):
    examples = [Example(segments, advantage=float(i)) for i, segments in enumerate(ledgers(seed=3))]
    batches = micro_batches(examples, max_tokens=200, merge=MERGE, share=share, hidden=64)
    targets = by_owner(batches, [b.targets for b in batches])
    recorded = by_owner(batches, [b.recorded for b in batches])
    for index, example in enumerate(examples):
        own = [s for s in example.segments if isinstance(s, TextSegment) and s.sampled]
        assert targets[index].tolist() == [i for s in own for i in s.ids]
        assert recorded[index].tolist() == pytest.approx([p for s in own for p in s.logprobs])
    for batch in batches:
        assert (batch.advantages == batch.owners).all()
        assert batch.lengths.tolist() == [examples[o].sampled for o in batch.owners.tolist()]


def test_gradients_are_equal_for_every_way_to_cut_and_chunk():
    def gradient(**settings):
        model = tiny_model()
        chunk_logits = settings.pop("chunk_logits")
        scorer = SampledTokens(model, temperature=1.0, banned_ids=BANNED, chunk_logits=chunk_logits)
        for batch in micro_batches([Example(s) for s in ledgers()], merge=MERGE, hidden=64, **settings):
            stats = scorer(batch, pixels)
            ((stats.logprobs + 0.1 * stats.entropy) / batch.lengths).sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    expected = gradient(max_tokens=10**6, share=False, chunk_logits=10**9)
    for settings in (
        {"max_tokens": 10**6, "share": False, "chunk_logits": 300},
        {"max_tokens": 100, "share": False, "chunk_logits": 10**9},
        {"max_tokens": 10**6, "share": True, "chunk_logits": 1000},
        {"max_tokens": 1, "share": True, "chunk_logits": 1000},
    ):
        for name, value in gradient(**settings).items():
            assert value is not None, name
            torch.testing.assert_close(value, expected[name], atol=3e-5, rtol=1e-4, msg=name)


def test_an_image_is_encoded_once_a_micro_batch_and_never_when_its_features_are_known(model):
    seen = []

    def counted(name):
        seen.append(name)
        return pixels(name)

    scorer = SampledTokens(model, temperature=1.0, banned_ids=BANNED)
    (batch,) = micro_batches([Example(s) for s in ledgers()], max_tokens=10**6, merge=MERGE)
    scorer(batch, counted)
    assert sorted(seen) == sorted(set(seen)) and set(seen) == set(batch.images)
    assert "12x12" not in seen, "an image after the last sampled token is never needed"
    with torch.no_grad():
        known = image_features(model, list(batch.images), pixels)
    seen.clear()
    again = scorer(batch, counted, known)
    assert not seen
    torch.testing.assert_close(again.logprobs, scorer(batch, pixels).logprobs, atol=1e-5, rtol=0)


def test_sharing_feeds_the_opening_of_a_group_once():
    examples = [Example(s) for s in ledgers(prompts=1, group=4)]
    (apart,) = micro_batches(examples, max_tokens=10**6, merge=MERGE, share=False)
    (together,) = micro_batches(examples, max_tokens=10**6, merge=MERGE, share=True, hidden=4096)
    opening = sum(s.tokens if isinstance(s, ImageSegment) else len(s.ids) for s in examples[0].segments[:3])
    assert apart.branches is None and together.branches is not None
    fed = int((together.branches >= 0).sum())
    lengths = [_fed_tokens(e) for e in examples]
    assert fed == sum(lengths) - 3 * opening
    assert together.image_slots.numel() == apart.image_slots.numel() - 3 * image(examples[0].segments[1].image).tokens


def _fed_tokens(example):
    end = total = 0
    for segment in example.segments:
        total += segment.tokens if isinstance(segment, ImageSegment) else len(segment.ids)
        if isinstance(segment, TextSegment) and segment.sampled:
            end = total - 1
    return end


def test_an_example_without_sampled_tokens_is_left_out():
    segments = ledgers()[0]
    assert micro_batches([Example(segments[:3])], max_tokens=100) == []
