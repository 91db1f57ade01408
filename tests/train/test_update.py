"""The update on a real (tiny, random) model: normalisation over micro-batches and ranks, non-finite steps, frozen parts."""

import copy
import functools
import math
import multiprocessing
import os
import random
import socket
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from agentvision.recipe.schema import KL, Algorithm, Correction
from agentvision.train.batch import Example
from agentvision.train.forward import SampledTokens
from agentvision.train.learner import freeze
from agentvision.train.reference import CopiedReference
from agentvision.train.update import Updater
from agentvision.types import TextSegment

from .conftest import BANNED, MERGE, ledgers, pixels, tiny_model

ALGORITHM = Algorithm(clip=0.2, clip_high=0.3, kl=KL(coef=0.05), entropy=0.01)


def examples(seed=0):
    rng = random.Random(seed)
    return [Example(segments, advantage=rng.uniform(-2, 2)) for segments in ledgers(seed)]


def make_updater(*, algorithm=ALGORITHM, lr=0.0, micro_batch_tokens=10**6, touch_all=False, frozen=(), seed=0):
    accelerator = Accelerator(cpu=True)
    model = tiny_model(seed)
    freeze(model, frozen)
    scorer = SampledTokens(model, temperature=1.0, banned_ids=BANNED, touch_all=touch_all)
    reference = None
    if algorithm.kl.coef:
        reference = CopiedReference(scorer)
        with torch.no_grad():
            for parameter in reference.scorer.parameters():
                parameter.mul_(1.02)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    scorer, optimizer = accelerator.prepare(scorer, optimizer)
    return Updater(
        accelerator=accelerator,
        scorer=scorer,
        optimizer=optimizer,
        algorithm=algorithm,
        grad_clip=1e9,
        micro_batch_tokens=micro_batch_tokens,
        max_tokens=16,
        merge=MERGE,
        reference=reference,
    )


def gradients(updater, batch, *, spare=None):
    """The gradient that an update would step along, and its stats."""
    found = {}

    def capture(*_, **__):
        model = updater.model
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    updater.optimizer.step = capture
    stats = updater.reinforce(batch, pixels, spare=spare)
    return found, stats


def oracle(batch, algorithm, *, model=None, begin=None):
    """Eq. 3 by a slow loop over trajectories and tokens, full logits, and autograd; `begin`: the step's first weights."""
    model = model or tiny_model()
    begin, correction = begin or copy.deepcopy(model), algorithm.correction
    reference = tiny_model()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.02)
    from .test_forward import oracle as full_forward

    used = [e for e in batch if e.sampled]
    tokens = sum(e.sampled for e in used)
    total = torch.zeros(())
    for example in used:
        logprobs, entropy = full_forward(model, example.segments, 1.0)
        with torch.no_grad():
            expected, _ = full_forward(reference, example.segments, 1.0)
        own = [s for s in example.segments if isinstance(s, TextSegment) and s.sampled]
        old = [p for s in own for p in s.logprobs]
        weights = [1.0] * len(old)
        if correction.kind != "none":
            with torch.no_grad():
                proximal, _ = full_forward(begin, example.segments, 1.0)
            ratios = [math.exp(p - o) for p, o in zip(proximal.tolist(), old, strict=True)]
            if correction.level == "sequence":
                ratios = [math.prod(ratios)] * len(ratios)
            c, old = correction.threshold, proximal
            weights = [min(r, c) if correction.kind == "truncated" else r * (1 / c <= r <= c) for r in ratios]
        trajectory = torch.zeros(())
        for lp, o, ref, h, weight in zip(logprobs, old, expected, entropy, weights, strict=True):
            ratio = torch.exp(lp - o)
            clipped = torch.clamp(ratio, 1 - algorithm.clip, 1 + (algorithm.clip_high or algorithm.clip))
            gain = torch.minimum(ratio * example.advantage, clipped * example.advantage)
            kl = torch.exp(ref - lp) - (ref - lp) - 1
            trajectory = trajectory - (weight * gain - algorithm.kl.coef * kl + algorithm.entropy * h)
        scale = {
            "trajectory": 1 / (example.sampled * len(used)),
            "token": 1 / tokens,
            "constant": 1 / (16 * len(used)),
        }
        total = total + trajectory * scale[algorithm.loss_norm]
    total.backward()
    return total.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    scale = max(g.abs().max() for g in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() / scale < 1e-5, name


@pytest.mark.parametrize("norm", ["trajectory", "token", "constant"])
def test_loss_and_gradient_are_eq_3s_for_every_size_of_micro_batch(norm):
    algorithm = ALGORITHM.model_copy(update={"loss_norm": norm})
    expected_loss, expected = oracle(examples(), algorithm)
    for micro_batch_tokens in (1, 120, 10**6):
        found, stats = gradients(make_updater(algorithm=algorithm, micro_batch_tokens=micro_batch_tokens), examples())
        assert stats.loss == pytest.approx(expected_loss, abs=2e-6)
        assert_same(found, expected)


CORRECTIONS = [
    Correction(kind=k, level=n, threshold=2.0) for k in ("truncated", "masked") for n in ("token", "sequence")
]


@functools.cache
def drifted(seed=0):
    """Examples whose recorded log-probs are those of the model's, give or take a factor of e in probability."""
    rng = random.Random(seed)
    known = make_updater().with_proximal(examples(), pixels)
    return [
        replace(e, segments=recorded(e.segments, [p + rng.gauss(0, 1) for p in e.proximal]), proximal=None)
        for e in known
    ]


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda c: f"{c.kind}-{c.level}")
def test_a_corrected_update_is_the_slow_loops_for_every_size_of_micro_batch(correction):
    algorithm = ALGORITHM.model_copy(update={"correction": correction})
    expected_loss, expected = oracle(drifted(), algorithm)
    seen = set()
    for micro_batch_tokens in (60, 10**6):
        found, stats = gradients(make_updater(algorithm=algorithm, micro_batch_tokens=micro_batch_tokens), drifted())
        assert stats.loss == pytest.approx(expected_loss, abs=5e-6)
        assert_same(found, expected)
        assert 0 < stats.bounded < stats.tokens == stats.measured and stats.ratio_max == 1 and stats.clipped == 0
        assert stats.importance_min < 0.5 and stats.importance_max > 2
        seen.add((stats.bounded, round(stats.importance_max, 2), round(stats.logprob_diff_sum, 3)))
    assert len(seen) == 1


@pytest.mark.parametrize("correction", CORRECTIONS[1:3], ids=lambda c: f"{c.kind}-{c.level}")
def test_later_updates_of_a_step_are_clipped_against_the_weights_that_it_began_with(correction):
    algorithm = ALGORITHM.model_copy(update={"correction": correction})
    updater = make_updater(algorithm=algorithm, micro_batch_tokens=120)
    begin = copy.deepcopy(updater.model)
    known = updater.with_proximal(drifted(), pixels)
    assert [len(e.proximal) for e in known] == [e.sampled for e in drifted()]
    with torch.no_grad():  # an update between
        for parameter in updater.model.parameters():
            parameter.mul_(1.05)
    updater._fresh = False
    expected_loss, expected = oracle(drifted(), algorithm, model=copy.deepcopy(updater.model), begin=begin)
    found, stats = gradients(updater, known)
    assert stats.loss == pytest.approx(expected_loss, abs=5e-6)
    assert_same(found, expected)
    assert stats.clipped > 0 and stats.ratio_max > 1 and stats.measured == stats.tokens


def test_moved_weights_say_nothing_about_the_sampler():
    updater = make_updater(lr=0.01)
    first, second = updater.reinforce(examples(), pixels), updater.reinforce(examples(), pixels)
    assert first.measured == first.tokens > 0 and second.measured == 0
    updater.begin_step()
    assert updater.reinforce(examples(), pixels).measured > 0


def test_without_a_mismatch_a_correction_changes_nothing():
    plain = make_updater(algorithm=Algorithm())
    on_policy = [replace(e, segments=recorded(e.segments, e.proximal)) for e in plain.with_proximal(examples(), pixels)]
    expected, _ = gradients(plain, on_policy)
    for correction in CORRECTIONS:
        found, stats = gradients(make_updater(algorithm=Algorithm(correction=correction)), on_policy)
        assert_same(found, expected)
        assert stats.bounded == 0 and abs(stats.importance_sum - stats.tokens) < 1e-3


def test_an_update_that_is_not_finite_touches_no_weight():
    updater = make_updater(lr=0.1)
    before = {k: v.clone() for k, v in updater.model.state_dict().items()}
    bad = [replace(e, advantage=math.nan) for e in examples()]
    stats = updater.reinforce(bad, pixels)
    assert not stats.finite
    assert all(torch.equal(v, before[k]) for k, v in updater.model.state_dict().items())
    stats = updater.reinforce(examples(), pixels)
    assert stats.finite
    assert not all(torch.equal(v, before[k]) for k, v in updater.model.state_dict().items())
    assert all(bool(torch.isfinite(p).all()) for p in updater.model.parameters())


def test_on_policy_the_mismatch_is_rounding_alone():
    updater = make_updater(algorithm=Algorithm())
    sampled = [replace(e, segments=recorded(e.segments, e.proximal)) for e in updater.with_proximal(examples(), pixels)]
    stats = updater.reinforce(sampled, pixels)
    assert stats.logprob_diff_max < 1e-5 and stats.clipped == 0 and stats.ratio_max < 1 + 1e-5


def recorded(segments, logprobs):
    """The ledger with these log-probs recorded."""
    values = iter(logprobs)
    return tuple(
        replace(s, logprobs=tuple(next(values) for _ in s.ids)) if isinstance(s, TextSegment) and s.sampled else s
        for s in segments
    )


def test_a_frozen_tower_encodes_each_image_once_a_step_and_keeps_its_weights():
    updater = make_updater(lr=0.1, micro_batch_tokens=1, frozen=("vision", "projector"))
    before = {k: v.clone() for k, v in updater.model.model.visual.state_dict().items()}
    seen = []

    def counted(name):
        seen.append(name)
        return pixels(name)

    for _ in range(2):
        updater.reinforce(examples(), counted)
    assert len(seen) == len(set(seen)) > 1
    updater.begin_step()
    updater.reinforce(examples(), counted)
    assert len(seen) == 2 * len(set(seen))
    assert all(torch.equal(v, before[k]) for k, v in updater.model.model.visual.state_dict().items())


def test_imitation_lowers_the_cross_entropy():
    updater = make_updater(lr=3e-3, algorithm=Algorithm())
    losses = [updater.imitate(examples(), pixels).loss for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]


CORRECTED = ALGORITHM.model_copy(update={"correction": Correction(kind="truncated")})


def rank_of_two(rank, port, out, uneven):
    """One of two ranks, in a process of its own."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    torch.set_num_threads(1)
    updater = make_updater(algorithm=CORRECTED, touch_all=True, micro_batch_tokens=150)
    mine, spare = [examples()[:9], examples()[9:]] if uneven else [examples(), []], examples()[0] if uneven else None
    known = updater.with_proximal(mine[rank], pixels, spare=spare)
    found, _ = gradients(updater, known, spare=spare)
    if rank == 0:
        torch.save(found, out)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("uneven", [True, False])
def test_two_ranks_have_the_gradient_of_one(tmp_path, uneven):
    """Gloo between two processes that differ in examples and micro-batches, or of which one has none."""
    alone = make_updater(algorithm=CORRECTED)
    expected, _ = gradients(alone, alone.with_proximal(examples(), pixels))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "gradients.pt"
    context = multiprocessing.get_context("forkserver")  # one import for both, and no autograd threads to inherit
    context.set_forkserver_preload([__name__])
    ranks = [context.Process(target=rank_of_two, args=(rank, port, out, uneven)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=400)
        if process.is_alive():
            process.kill()
        assert process.exitcode == 0
    found = torch.load(out, weights_only=True)
    assert found.keys() == expected.keys()
    scale = max(g.abs().max() for g in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() / scale < 1e-6, name


def test_a_rank_without_a_single_ledger_still_takes_part():
    updater = make_updater()
    before = {k: v.clone() for k, v in updater.model.state_dict().items()}
    gathered = updater.accelerator.gather
    updater.accelerator.gather = lambda values: gathered(values) + 2  # another rank has two micro-batches
    try:
        batches, counts = updater._plan([], None)
    finally:
        updater.accelerator.gather = gathered
    assert len(batches) == counts.spare == 2
    weights = [updater._weights(batch, counts, "trajectory", spare=True) for batch in batches]
    assert all((w == 0).all() and w.numel() == 1 for w in weights)
    assert all(torch.isfinite(updater.scorer(batch, pixels, None).logprobs).all() for batch in batches)
    assert all(torch.equal(v, before[k]) for k, v in updater.model.state_dict().items())
