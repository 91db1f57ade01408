"""Several servers and new weights: who has them gets turns, who lost them is brought them anew."""

import asyncio

import pytest

from agentvision.engine.types import EngineError, SyncError

from ..policies.policy_cases import Talk
from .asks import ask_of
from .pool_cases import bring, episode, in_flight, pool_of, talks_of, until, until_ready, until_serving


async def test_one_that_was_started_again_gets_no_turn_before_it_has_the_newest_weights(codec, serve):
    servers = [serve(), serve()]
    admitted, gate = [], asyncio.Event()
    loop = asyncio.get_running_loop()

    async def admit(endpoint):
        admitted.append(endpoint.url)
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(gate.wait(), loop))
        await bring(endpoint, 7)

    async with pool_of(codec, *servers, admit=admit) as pool:
        await until_serving(pool, 2)
        await asyncio.gather(*(bring(control, 7) for control in pool.controls()))
        servers[0].die()
        servers[0].start()
        await until(lambda: admitted)
        before = len(servers[0].turns)
        answers = await asyncio.gather(*(pool.sample(ask_of(talk)) for talk in talks_of(codec, 12)))
        assert {span.version for sampled in answers for span in sampled.versions} == {7}
        assert len(servers[0].turns) == before and admitted == [servers[0].url]
        gate.set()
        await until(lambda: pool._is_able(pool._members[0]))
        later = [Talk(codec, session=f"later {k}", group=f"later {k}") for k in range(12)]
        await asyncio.gather(*(pool.sample(ask_of(talk)) for talk in later))
        assert len(servers[0].turns) > before


async def test_an_answer_of_forgotten_weights_is_not_taken(codec, serve):
    """Between two looks a server may die and be started again: its first answer tells."""
    servers = [serve(), serve()]
    async with pool_of(codec, *servers, look_s=60.0) as pool:
        await until_serving(pool, 2)
        await asyncio.gather(*(bring(control, 3) for control in pool.controls()))
        servers[0].version = "default"
        answers = await asyncio.gather(*(pool.sample(ask_of(talk)) for talk in talks_of(codec, 8)))
        assert {span.version for sampled in answers for span in sampled.versions} == {3}
        await until(lambda: "version 'default' and the newest are '3'" in str(pool._members[0].error))
        assert [control.url for control in pool.controls()] == [servers[1].url]


async def test_one_whose_update_failed_is_taken_out_and_the_others_go_on(codec, serve):
    servers = [serve(), serve()]
    async with pool_of(codec, *servers) as pool:
        await until_serving(pool, 2)
        bad, good = pool.controls()
        await bad.pause()
        await bad.start_weight_update()
        with pytest.raises(EngineError):
            await bad.update_weights({"fail": True})
        await bring(good, 1)
        await asyncio.gather(*(pool.sample(ask_of(talk)) for talk in talks_of(codec, 6)))
        assert servers[0].turns == []
        await until(lambda: len(pool.controls()) == 1)
        await bring(bad, 1)
        await until(lambda: len(pool.controls()) == 2)


async def test_turns_of_one_whose_new_weights_were_not_proven_move_to_one_whose_were(codec, serve):
    """The trainer leaves it paused and says nothing more; what it had in flight is not left waiting with it."""
    servers = [serve() for _ in range(2)]
    async with pool_of(codec, *servers, quiet_s=0.3) as pool, in_flight(pool, servers, talks_of(codec, 6)) as turns:
        unproven, proven = pool.controls()
        await unproven.pause()
        await unproven.start_weight_update()
        await unproven.finish_weight_update(1)
        await bring(proven, 1)
        await asyncio.gather(*turns)
        assert len(servers[0].turns) == 3 and pool.controls() == [proven]


async def test_turns_in_flight_live_through_an_update_of_all(codec, serve):
    servers = [serve(latency_s=lambda turn: 0.2) for _ in range(2)]
    async with pool_of(codec, *servers) as pool:
        await until_serving(pool, 2)
        heard = []
        episodes = asyncio.gather(*(episode(pool, talk, 4, heard) for talk in talks_of(codec, 10)))
        for version in range(1, 4):
            await asyncio.sleep(0.15)
            await asyncio.gather(*(bring(control, version) for control in pool.controls()))
        await episodes
    assert len(heard) == 40 and len({(session, turn) for session, turn, *_ in heard}) == 40


async def test_a_look_that_is_wanted_during_a_look_is_made(codec, serve):
    server = serve()
    async with pool_of(codec, server, look_s=600.0) as pool:
        (member,) = pool._members
        check, looks = member.endpoint.check, []

        async def checked(*, timeout_s):
            looks.append(1)
            if len(looks) == 1:
                member.look_now.set()
            await check(timeout_s=timeout_s)

        member.endpoint.check = checked
        await pool.ready()
        await until(lambda: len(looks) == 2)


async def test_the_number_of_another_runs_weights_is_not_believed(codec, serve):
    """A server that an older run left at version 1 is brought this run's version 1 before it gets a turn."""
    servers, admitted = [serve(), serve()], []

    async def admit(endpoint):
        assert endpoint.weights is None, "whoever looks at its number would take it for the newest"
        admitted.append(endpoint.url)
        await bring(endpoint, 1)

    async with pool_of(codec, *servers, admit=admit) as pool:
        await until_serving(pool, 2)
        servers[1].die()
        await until(lambda: len(pool.controls()) == 1)
        await bring(pool.controls()[0], 1)
        servers[1].start()
        servers[1].version = "1"
        await until(lambda: len(pool.controls()) == 2)
        assert admitted == [servers[1].url]
        assert "/finish_weight_update" in [call for call, _ in servers[1].calls]


async def test_a_pool_closes_no_server_while_weights_are_brought_to_it(codec, serve):
    servers, began, ended = [serve(), serve()], [], []

    async def admit(endpoint):
        began.append(endpoint)
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.1)  # as one that waits for a thread that copies
            ended.append(await endpoint.version())

    async with pool_of(codec, *servers, admit=admit) as pool:
        await until_serving(pool, 2)
        servers[1].die()
        await until(lambda: len(pool.controls()) == 1)
        await bring(pool.controls()[0], 1)
        servers[1].start()
        await until(lambda: began)
    assert ended == ["default"]


async def test_weights_that_this_run_cannot_bring_are_used_as_they_are(codec, serve):
    """Evaluation: nothing was ever brought, and the servers' weights are whatever they are."""
    servers = [serve(), serve()]
    servers[0].version = "40"
    async with pool_of(codec, *servers) as pool:
        await until_serving(pool, 2)
        answers = await asyncio.gather(*(pool.sample(ask_of(talk)) for talk in talks_of(codec, 8)))
        assert {span.version for sampled in answers for span in sampled.versions} == {0, 40}


async def test_turns_wait_for_one_that_takes_weights_whatever_it_failed_at_once(codec, serve):
    """What kept it away before it was taken back says nothing about a pause of the trainer's."""
    server = serve(exact=False)
    async with pool_of(codec, server) as pool:
        with pytest.raises(EngineError, match="chat alone"):
            await pool.ready()
        server.exact = True
        await until_ready(pool)
        (control,) = pool.controls()
        await control.pause()
        asked = asyncio.create_task(pool.sample(ask_of(Talk(codec))))
        await asyncio.sleep(0.2)
        assert not asked.done()
        await bring(control, 1)
        assert (await asked).versions[0].version == 1


async def test_weights_that_did_not_arrive_are_waited_for(codec, serve):
    """They are sent again at every look, so a turn does not fail by it at once."""
    server, tries = serve(), []

    async def admit(endpoint):
        tries.append(endpoint.url)
        if len(tries) < 3:
            raise SyncError("a tensor did not arrive")
        await bring(endpoint, 2)

    async with pool_of(codec, server, admit=admit) as pool:
        await until_serving(pool, 1)
        await bring(pool.controls()[0], 2)
        server.die()
        server.start()
        assert (await pool.sample(ask_of(Talk(codec)))).versions[0].version == 2
        assert len(tries) == 3


async def test_a_pause_that_nobody_stands_behind_is_undone(codec, serve):
    server = serve()
    server.paused = True  # a trainer that died left it so
    async with pool_of(codec, server) as pool:
        assert (await pool.sample(ask_of(Talk(codec)))).ids
