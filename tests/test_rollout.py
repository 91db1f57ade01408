"""The agent loop: episodes end for a reason, whatever happens inside them, and a reply is committed whole or not at all."""

import asyncio
from dataclasses import replace

import pytest

from agentvision.errors import ImageError
from agentvision.geometry import Affine
from agentvision.images import ImageStore
from agentvision.policy import Completion, SamplingParams, VersionSpan
from agentvision.rollout import Limits, rollout_groups, run_episode, run_group
from agentvision.tokens import token_count, trainer_ids
from agentvision.types import (
    Message,
    Observation,
    ParsedTurn,
    Sample,
    StepResult,
    StopReason,
    TextSegment,
    ToolCall,
    ToolRecord,
    Turn,
    View,
    ViewPart,
)


def view(index: int) -> View:
    return View(index, f"h{index}", "h1", Affine(), (32, 16), (64, 32), 2, "first_view" if index == 1 else "look")


class Env:
    """Answers `look` with a picture and anything else ends the episode with it."""

    def __init__(self, reply: str = "here", fail: Exception | None = None) -> None:
        self.reply, self.fail, self.closed = reply, fail, 0

    async def reset(self, sample: Sample, *, seed: int) -> Observation:
        self.seed = seed
        return Observation((Message("user", (ViewPart(1), sample.question)),), (view(1),), full_tokens=8)

    async def step(self, message: Message) -> StepResult:
        if self.fail:
            raise self.fail
        if message.text == "look":
            record = ToolRecord(ToolCall("look", {}), views=(2,))
            turn = Turn(message.text, ParsedTurn(call=record.call), tool=record)
            return StepResult(turn, Observation((Message("user", (self.reply, ViewPart(2))),), (view(2),)), reward=0.25)
        turn = Turn(message.text, ParsedTurn(answer=message.text))
        return StepResult(turn, None, stop=StopReason.ANSWERED, answer=message.text)

    async def close(self) -> None:
        self.closed += 1


class Script:
    """A policy that says the given lines, turn by turn; `told`: what it says of the prompt's tokens and its own."""

    trainable, version = False, 3

    def __init__(self, *lines, codec=None, delay_s: float = 0.0, told=()) -> None:
        self.lines, self.codec, self.delay_s, self.told = lines, codec, delay_s, told
        self.requests, self.released = [], []

    async def complete(self, request) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(self.delay_s)
        line = self.lines[request.turn]
        if isinstance(line, Exception):
            raise line
        if self.codec is None:
            usage = dict(zip(("prompt_tokens", "completion_tokens"), self.told[request.turn])) if self.told else {}
            return Completion(line, usage=usage)
        ids = (*self.codec.encode_text(line), self.codec.stop_ids[0])
        return Completion(line, ids, (-0.5,) * len(ids), versions=(VersionSpan(self.version, 0, len(ids)),))

    async def release(self, session: str) -> None:
        self.released.append(session)

    async def close(self) -> None: ...


SAMPLE = Sample("s", "What?", answer="K7")


def episode(policy, env=None, **kwargs):
    kwargs = {"store": ImageStore(), "sampling": SamplingParams(), **kwargs}
    return run_episode(SAMPLE, env=env or Env(), policy=policy, **kwargs)


async def test_an_episode_records_its_turns_views_and_answer(codec):
    env, policy = Env(), Script("look", "K7", codec=codec)
    t = await episode(policy, env)
    assert (t.stop, t.answer, len(t.turns), len(t.views)) == (StopReason.ANSWERED, "K7", 2, 2)
    assert t.looked_closer
    assert (t.visual_tokens_additive, t.visual_tokens_replacement, t.full_tokens) == (4, 2, 8)
    assert [m.role for m in t.messages] == ["user", "assistant", "user", "assistant"]
    assert t.env_reward == 0.25
    assert env.closed == 1
    assert policy.released == ["s/0"]
    sampled = [s for s in t.segments if isinstance(s, TextSegment) and s.sampled]
    assert [s.version for s in sampled] == [3, 3]
    assert [turn.tokens for turn in t.turns] == [len(s.ids) for s in sampled]


async def test_a_turn_that_goes_on_under_new_weights_is_a_segment_a_version(codec):
    class Moving(Script):
        async def complete(self, request):
            said = await super().complete(request)
            return replace(said, versions=(VersionSpan(3, 0, 1), VersionSpan(4, 1, len(said.ids))))

    t = await episode(Moving("look", "K7", codec=codec))
    assert t.stop is StopReason.ANSWERED
    sampled = [s for s in t.segments if isinstance(s, TextSegment) and s.sampled]
    assert [s.version for s in sampled] == [3, 4, 3, 4]
    assert [turn.tokens for turn in t.turns] == [sum(len(s.ids) for s in sampled[k : k + 2]) for k in (0, 2)]
    whole = await episode(Script("look", "K7", codec=codec))
    assert trainer_ids(t.segments, 0) == trainer_ids(whole.segments, 0)


async def test_each_request_extends_the_one_before(codec):
    policy = Script("look", "K7", codec=codec)
    await episode(policy)
    first, second = (r.segments for r in policy.requests)
    assert second[: len(first)] == first


@pytest.mark.parametrize(
    ("policy", "env", "stop"),
    [
        (Script(RuntimeError("engine gone")), Env(), StopReason.POLICY_ERROR),
        (Script(TimeoutError("its own")), Env(), StopReason.POLICY_ERROR),
        (Script("x"), Env(fail=KeyError("bug")), StopReason.ENV_ERROR),
    ],
)
async def test_a_failure_inside_is_recorded_with_whose_it_was(policy, env, stop):
    t = await episode(policy, env)
    assert t.stop is stop
    assert t.error
    assert env.closed == 1
    assert policy.released


async def test_an_image_that_cannot_be_read_is_the_samples_fault():
    class Blind(Env):
        async def reset(self, sample, *, seed):
            raise ImageError("cut short")

    t = await episode(Script("x"), env := Blind())
    assert (t.stop, t.error, t.turns, env.closed) == (StopReason.BAD_IMAGE, "cut short", (), 1)
    late = await episode(Script("x"), Env(fail=ImageError("a bug of the environment")))
    assert late.stop is StopReason.ENV_ERROR


async def test_a_deadline_ends_the_episode_and_keeps_what_was_said():
    policy = Script("look", "late")
    policy.complete, complete = None, policy.complete

    async def slow(request):
        await asyncio.sleep(60 * request.turn)
        return await complete(request)

    policy.complete = slow
    t = await episode(policy, limits=Limits(deadline_s=1.0))
    assert t.stop is StopReason.DEADLINE
    assert [turn.text for turn in t.turns] == ["look"]


async def test_a_reply_that_does_not_fit_is_not_committed(codec):
    whole = await episode(Script("look", "K7", codec=codec))
    limit = token_count(whole.segments) - 30
    t = await episode(Script("look", "K7", codec=codec), Env(reply="x" * 60), limits=Limits(context_tokens=limit))
    assert t.stop is StopReason.CONTEXT
    assert len(t.views) == 1
    assert not t.looked_closer
    assert t.messages[-1].role == "assistant"
    assert token_count(t.segments) < limit
    assert isinstance(t.segments[-1], TextSegment)
    assert t.segments[-1].sampled


async def test_an_opening_that_does_not_fit_ends_before_the_policy_is_asked(codec):
    policy = Script("K7", codec=codec)
    t = await episode(policy, limits=Limits(context_tokens=3))
    assert (t.stop, t.turns, policy.requests) == (StopReason.CONTEXT, (), [])


async def test_a_turn_gets_no_more_tokens_than_the_context_has_left(codec):
    policy = Script("K7", codec=codec)
    await episode(policy, limits=Limits(context_tokens=40), sampling=SamplingParams(max_tokens=1000))
    request = policy.requests[0]
    assert request.sampling.max_tokens == 40 - token_count(request.segments)


async def test_without_ids_the_context_is_held_by_what_the_provider_says_of_it():
    policy = Script("look", "look", "K7", told=[(20, 5), (60, 5), (90, 5)])
    t = await episode(policy, limits=Limits(context_tokens=50), sampling=SamplingParams(max_tokens=40))
    assert [r.sampling.max_tokens for r in policy.requests] == [40, 25]
    assert t.stop is StopReason.CONTEXT and len(t.views) == 2, "what came after 65 tokens was not committed"
    silent = Script("look", "look", "K7")
    t = await episode(silent, limits=Limits(context_tokens=50), sampling=SamplingParams(max_tokens=40))
    assert t.stop is StopReason.ANSWERED and {r.sampling.max_tokens for r in silent.requests} == {40}


async def test_an_unfinished_turn_ends_the_episode():
    policy = Script("never end")
    complete = policy.complete

    async def cut(request):
        return Completion((await complete(request)).text, ended=False)

    policy.complete = cut
    t = await episode(policy)
    assert (t.stop, len(t.turns)) == (StopReason.LENGTH, 1)


async def test_cancellation_passes_through_and_frees():
    env, policy = Env(), Script("K7", delay_s=60)
    task = asyncio.create_task(episode(policy, env))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert env.closed == 1
    assert policy.released == ["s/0"]


async def test_a_group_shares_its_prompt_and_draws_its_own_seeds():
    policy = Script("K7")
    group = await run_group(SAMPLE, size=4, make_env=Env, policy=policy, store=ImageStore(), sampling=SamplingParams())
    assert [t.rollout for t in group.trajectories] == [0, 1, 2, 3]
    assert {r.group for r in policy.requests} == {"s"}
    assert len({r.session for r in policy.requests}) == len({r.sampling.seed for r in policy.requests}) == 4


async def test_groups_come_as_they_finish():
    others_done = asyncio.Event()

    class Uneven(Script):
        async def complete(self, request):
            await (others_done.wait() if request.group == "0" else asyncio.sleep(0))
            return Completion("K7")

    samples = [(str(k), Sample(str(k), "?")) for k in range(6)]
    names = []
    async for group in rollout_groups(
        samples, size=2, make_env=Env, policy=Uneven(), store=ImageStore(), sampling=SamplingParams(), at_once=4
    ):
        names.append(group.sample.id)
        if len(names) == len(samples) - 1:
            others_done.set()
    assert sorted(names) == list("012345")
    assert names[-1] == "0"


@pytest.mark.parametrize("at_once", [1, 3, 7, 100])
async def test_so_many_episodes_are_in_flight_as_allowed_and_they_begin_in_order(at_once):
    begun, running, most = [], 0, 0

    class Counted(Env):
        async def reset(self, sample, *, seed):
            nonlocal running, most
            running += 1
            most = max(most, running)
            begun.append(sample.id)
            await asyncio.sleep(0.002 * (len(begun) % 3))
            return await super().reset(sample, seed=seed)

        async def close(self):
            nonlocal running
            running -= 1

    samples = [(str(k), Sample(str(k), "?")) for k in range(4)]
    stream = rollout_groups(
        samples, size=3, make_env=Counted, policy=Script("K7"), store=ImageStore(), sampling=SamplingParams(),
        at_once=at_once,
    )  # fmt: skip
    groups = [group async for group in stream]
    assert most == min(at_once, 12)
    assert begun == [str(k) for k in range(4) for _ in range(3)]
    assert all([t.rollout for t in group.trajectories] == [0, 1, 2] for group in groups)


async def test_leaving_early_cancels_the_rest():
    policy = Script("K7", delay_s=0.01)
    samples = [(str(k), Sample(str(k), "?")) for k in range(8)]
    stream = rollout_groups(
        samples, size=2, make_env=Env, policy=policy, store=ImageStore(), sampling=SamplingParams(), at_once=4
    )
    async for _ in stream:
        break
    await stream.aclose()
    assert len(asyncio.all_tasks()) == 1
    assert len(policy.released) == len(policy.requests)


async def test_what_fails_while_putting_away_is_recorded_and_stops_nobody():
    class Leaky(Env):
        async def close(self):
            raise OSError("the socket is gone")

    class Clumsy(Script):
        async def release(self, session):
            raise RuntimeError("no such session")

    env = Env()
    trajectory = await episode(Clumsy("K7"), env)
    assert trajectory.answer == "K7" and "no such session" in trajectory.error and env.closed == 1
    assert "the socket is gone" in (await episode(Script("K7"), Leaky())).error


async def test_a_sample_drawn_twice_is_rolled_out_twice():
    policy = Script("K7")
    for name in ("a", "b"):
        await run_group(
            SAMPLE, size=2, make_env=Env, policy=policy, store=ImageStore(), sampling=SamplingParams(), group=name
        )
    assert len({r.sampling.seed for r in policy.requests}) == 4


async def test_a_policy_that_returns_no_completion_is_to_blame_by_name():
    class Mute(Script):
        async def complete(self, request):
            return None

    t = await episode(Mute())
    assert t.stop is StopReason.POLICY_ERROR
    assert t.error.splitlines()[0] == "TypeError: Mute.complete() returned NoneType, which is no Completion"
