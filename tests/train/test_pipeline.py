"""Batches ahead of the weights: in order, bounded, and whatever fails is raised where it belongs. Then the real thing."""

import asyncio
import random
import threading
import time

import pytest

from agentvision.images import ImageStore
from agentvision.tracking import read_metrics
from agentvision.train.collect import Collected
from agentvision.train.grpo import GRPO
from agentvision.train.pipeline import Batch, Pipeline
from agentvision.train.run import train

from .run_cases import OVERLAPPING, SIGNALLING, lags_of

EMPTY = Collected((), 1, 0.0, 0.0)


class World:
    """Weights that are updated, and rollouts that take as long as they like and note when they began."""

    def __init__(self, *, max_staleness, steps=20, seed=0, fail_at=None):
        self.version, self.begun, self.rolling, self.drawn = 0, {}, 0, 0
        self.rng, self.fail_at = random.Random(seed), fail_at
        self.pipeline = Pipeline(self.roll, max_staleness=max_staleness, steps=steps)

    async def roll(self, step):
        self.begun[step] = self.version
        self.rolling += 1
        assert self.rolling == 1, "one batch at a time"
        try:
            for _ in range(self.rng.randrange(4)):
                self.drawn += 1
                await asyncio.sleep(self.rng.random() / 500)
            if step == self.fail_at:
                raise ArithmeticError(f"in batch {step}")
            return Batch(EMPTY, ImageStore(), self.drawn)
        finally:
            self.rolling -= 1

    async def train(self, steps=20):
        cursors = []
        try:
            for step in range(steps):
                batch = await self.pipeline.batch(step)
                cursors.append(batch.cursor)
                await self.pipeline.meanwhile(lambda: time.sleep(self.rng.random() / 500))
                self.version = step + 1
        finally:
            await self.pipeline.close()
        return cursors


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
async def test_no_batch_begins_further_ahead_than_is_allowed(max_staleness, seed):
    world = World(max_staleness=max_staleness, seed=seed)
    cursors = await world.train()
    assert list(world.begun) == list(range(20)), "each once, in order, and none past the last step"
    lags = [step - version for step, version in world.begun.items()]
    assert min(lags) >= 0 and max(lags) <= max_staleness and (max(lags) > 0) == (max_staleness > 0)
    assert cursors == sorted(cursors) and cursors[-1] == world.drawn


async def test_rollouts_go_on_beside_an_update_and_only_there():
    for max_staleness in (0, 1):
        world = World(max_staleness=max_staleness)
        await world.pipeline.batch(0)
        threads, begun = [], threading.Event()

        def update(threads=threads, begun=begun, wait=bool(max_staleness)):
            threads.append(threading.current_thread())
            return not wait or begun.wait(20)

        world.roll_was, roll = world.roll, world.roll

        async def watched(step, roll=roll, begun=begun):
            begun.set()
            return await roll(step)

        world.pipeline._roll = watched
        assert await world.pipeline.meanwhile(update), "the next batch did not begin beside the update"
        assert (threads[0] is threading.current_thread()) == (max_staleness == 0)
        assert begun.is_set() == bool(max_staleness)
        await world.pipeline.close()


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
async def test_what_fails_in_a_batch_is_raised_at_its_own_step(max_staleness):
    world = World(max_staleness=max_staleness, fail_at=5)
    with pytest.raises(ArithmeticError, match="in batch 5"):
        await world.train()
    assert world.version == 5 and max(world.begun) == 5, (
        "five steps are done, and nothing is rolled out after the failure"
    )
    assert world.rolling == 0


async def test_an_update_that_fails_leaves_nothing_running():
    world = World(max_staleness=2)

    def fails():
        raise FloatingPointError("nan")

    await world.pipeline.batch(0)
    with pytest.raises(FloatingPointError):
        await world.pipeline.meanwhile(fails)
    await world.pipeline.close()
    assert world.rolling == 0 and len(asyncio.all_tasks()) == 1


async def test_an_update_is_not_abandoned_half_way():
    world, done, go = World(max_staleness=1), [], threading.Event()

    def update():
        go.wait(20)
        done.append(1)

    task = asyncio.create_task(world.pipeline.meanwhile(update))
    await asyncio.sleep(0.01)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, go.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]
    await world.pipeline.close()


async def test_waiting_for_a_batch_can_be_cancelled_and_ends_it():
    world = World(max_staleness=1)
    ended = []

    async def forever(step):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(step)

    world.pipeline._roll = forever
    task = asyncio.create_task(world.pipeline.batch(0))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.pipeline.close()
    assert ended == [0] and len(asyncio.all_tasks()) == 1


# --- a run ------------------------------------------------------------------------------------------------------------


def test_every_token_of_an_overlapping_run_was_sampled_by_the_weights_that_the_ledger_says(
    recipe, tmp_path, monkeypatch
):
    """Recomputed with the checkpoint of its version, each recorded log-prob is exact, and turns went on under new weights."""
    update, slowed = GRPO.update, []

    def update_beside_turns(self, *args):
        if not slowed:  # so that no turn is over before the weights change
            head = self.learner.policy.model.lm_head
            slowed.append(head.register_forward_hook(lambda *args: time.sleep(0.005)))
        done = update(self, *args)
        stats, until = self.learner.policy.stats, time.monotonic() + 20
        said = stats.decode_steps
        while self.step < 3 and stats.decode_steps < said + 3 and time.monotonic() < until:
            time.sleep(0.001)  # the last step has no batch beside it
        return done

    monkeypatch.setattr(GRPO, "update", update_beside_turns)
    result = train(recipe(*OVERLAPPING, "sampling.max_tokens=24"), out=tmp_path / "run", quiet=True)
    assert result.steps == 4
    rows = read_metrics(tmp_path / "run")
    assert rows[0]["staleness_max"] == 0 and all(0 <= row["staleness_max"] <= 1 for row in rows)
    assert rows[0]["logprob_diff_max"] < 1e-4 and rows[0]["importance_ess"] == pytest.approx(1)
    lags, mixed = lags_of(tmp_path / "run", recipe().model.path)
    assert lags == {0, 1} and mixed > 0


def test_an_overlapping_run_that_is_interrupted_is_resumed_to_its_end(recipe, tmp_path, monkeypatch):
    own = (*OVERLAPPING, SIGNALLING, "trainer.steps=3")
    monkeypatch.setenv("TEST_SIGNAL_AT", "13")
    cut = train(recipe(*own), out=tmp_path / "cut", quiet=True)
    assert cut.interrupted is not None and cut.checkpoint.is_dir()
    resumed = train(recipe(*own), out=tmp_path / "cut", resume=True, quiet=True)
    assert resumed.steps == 3 and [row["step"] for row in read_metrics(tmp_path / "cut")] == [1, 2, 3]
