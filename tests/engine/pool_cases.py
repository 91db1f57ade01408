"""What tests of several servers have in common: a pool over fake ones, episodes on it, and what is waited for."""

import asyncio
import time
from contextlib import asynccontextmanager

from agentvision.engine.endpoint import Endpoint
from agentvision.engine.pool import Pool
from agentvision.types import Message, TextSegment

from ..policies.policy_cases import Talk, picture
from .asks import ask_of
from .vllm_server import answer_of


@asynccontextmanager
async def pool_of(codec, *servers, timeout_s=30.0, quiet_s=30.0, **options):
    options = {"look_s": 0.05, "answer_s": 10.0, "patience_s": 30.0} | options
    pool = Pool(
        [Endpoint(server.url, codec=codec, timeout_s=timeout_s, quiet_s=quiet_s) for server in servers], **options
    )
    try:
        yield pool
    finally:
        await pool.close()


async def until(condition, *, within_s=20.0):
    stop = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < stop, "it did not come to pass"
        await asyncio.sleep(0.01)


def talks_of(codec, count, **options):
    return [
        Talk(codec, session=f"{k}/0", group=str(k), question=f"What is {k}?", seed=k, **options) for k in range(count)
    ]


async def episode(pool, talk, turns, heard, images=False):
    """A rollout whose every turn appends what was said, as the agent loop does."""
    for turn in range(turns):
        sampled = await pool.sample(ask_of(talk, turn=turn))
        heard.append((talk.session, turn, answer_of(sampled.logprobs), talk.segments, sampled.ids))
        talk.messages += (Message("assistant", ("…",)),)
        talk.segments += (TextSegment(sampled.ids, sampled=True, logprobs=sampled.logprobs),)
        if turn + 1 < turns:
            talk.reply(image=picture(turn, 32, 32) if images else None)
    await pool.release(talk.session)


@asynccontextmanager
async def in_flight(pool, servers, talks):
    """One turn of each, none of which is answered yet."""
    await until_serving(pool, len(servers))
    before = sum(len(server.turns) for server in servers)
    for server in servers:
        server.paused = True
    turns = [asyncio.create_task(pool.sample(ask_of(talk))) for talk in talks]
    await until(lambda: sum(len(server.turns) for server in servers) == before + len(talks))
    yield turns
    for server in servers:
        server.paused = False
    await asyncio.gather(*turns)


async def until_serving(pool, count):
    await pool.ready()
    await until(lambda: len(pool.controls()) == count)


async def until_ready(pool):
    await until(lambda: pool.controls())
    await pool.ready()


async def bring(endpoint, version):
    await endpoint.pause()
    await endpoint.start_weight_update()
    await endpoint.update_weights({})
    await endpoint.finish_weight_update(version)
    await endpoint.reset_caches()
    await endpoint.resume()
