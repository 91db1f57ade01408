"""A pool of a rank that brings no weights: it asks where the first rank has brought them."""

import asyncio

from ..policies.policy_cases import Talk
from .asks import ask_of
from .pool_cases import bring, episode, pool_of, talks_of, until, until_serving


async def test_a_pool_that_follows_another_processs_weights_goes_where_they_are(codec, serve):
    """Ranks other than the first bring nothing: they are told a version, and resume no pause that is the first one's."""
    servers, admitted = [serve(), serve()], []

    async def admit(endpoint):
        admitted.append(endpoint.url)

    async with pool_of(codec, *servers) as first, pool_of(codec, *servers, admit=admit) as pool:
        await until_serving(first, 2)
        await until_serving(pool, 2)
        for version in (1, 2):
            await asyncio.gather(*(bring(control, version) for control in first.controls()))
            await pool.expect(version)
            talks = [Talk(codec, session=f"{version} {k}", group=f"{version} {k}", seed=k) for k in range(8)]
            answers = await asyncio.gather(*(pool.sample(ask_of(talk)) for talk in talks))
            assert {span.version for sampled in answers for span in sampled.versions} == {version}
        failed = first.controls()[0]
        await failed.pause()  # as the first leaves one whose weights were not proven
        await until(lambda: pool.controls() == [pool._members[1].endpoint])
        before = len(servers[0].turns)
        later = [Talk(codec, session=f"later {k}", group=f"later {k}") for k in range(8)]
        await asyncio.gather(*(pool.sample(ask_of(talk)) for talk in later))
        assert len(servers[0].turns) == before and servers[0].paused and admitted == []
        await failed.resume()
        await until(lambda: len(pool.controls()) == 2)


async def test_a_pool_that_follows_asks_nothing_from_a_hold_until_it_is_told_of_the_weights(codec, serve):
    """The first process has resumed the server by then, to look at what the new weights say."""
    server = serve(latency_s=lambda turn: 30.0 if turn is server.turns[0] else 0.0)
    async with pool_of(codec, server) as first, pool_of(codec, server, follows=True) as pool:
        await until_serving(first, 1)
        await until_serving(pool, 1)
        talks = talks_of(codec, 2)
        early = asyncio.create_task(pool.sample(ask_of(talks[0])))
        await until(lambda: server.turns)
        await pool.hold()
        late = asyncio.create_task(pool.sample(ask_of(talks[1])))
        await bring(first.controls()[0], 1)
        await asyncio.sleep(0.3)
        assert not (early.done() or late.done()) and len(server.turns) == 1 and not server.paused
        await pool.expect(1)
        for sampled in (await early, await late):
            assert sampled.versions[-1].version == 1


async def test_turns_of_a_pool_that_follows_live_through_the_updates_of_the_first(codec, serve):
    servers = [serve(latency_s=lambda turn: 0.2) for _ in range(2)]
    heard = []
    async with pool_of(codec, *servers) as first, pool_of(codec, *servers) as pool:
        await until_serving(first, 2)
        await until_serving(pool, 2)
        episodes = asyncio.gather(*(episode(pool, talk, 4, heard) for talk in talks_of(codec, 10)))
        for version in range(1, 4):
            await asyncio.sleep(0.15)
            await asyncio.gather(*(bring(control, version) for control in first.controls()))
            await pool.expect(version)
        await episodes
    assert len(heard) == 40 and len({(session, turn) for session, turn, *_ in heard}) == 40


async def test_a_pool_that_follows_takes_no_server_for_lost_that_takes_weights(codec, serve):
    """An engine that fetches a large bucket answers nobody for minutes; its turns go on where they were."""
    server = serve(latency_s=lambda turn: 30.0 if turn is server.turns[0] else 0.0)
    async with pool_of(codec, server) as first, pool_of(codec, server, follows=True) as pool:
        await until_serving(first, 1)
        await until_serving(pool, 1)
        turn = asyncio.create_task(pool.sample(ask_of(Talk(codec), max_tokens=40)))
        await until(lambda: server.turns)
        await pool.hold()
        await first.controls()[0].pause()
        await until(lambda: server.turns[0].answer is not None)
        server.hang_engine()
        pool._answer_s = 0.1
        await asyncio.sleep(0.5)
        assert len(pool.controls()) == 1 and not turn.done()
        pool._answer_s = 10.0
        server.go_on()
        await bring(first.controls()[0], 1)
        await pool.expect(1)
        assert [span.version for span in (await turn).versions][-1] == 1
        assert len(server.turns) == 2, "it went on"
