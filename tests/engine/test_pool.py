"""Several servers as one: who gets a turn, and that no turn is lost or doubled when servers die, hang and come back."""

import asyncio
import random
import threading
import time
from contextlib import asynccontextmanager
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from agentvision.engine.endpoint import Endpoint
from agentvision.engine.pool import Pool
from agentvision.engine.types import EngineError, EngineLost, SyncError
from agentvision.tokens import engine_ids
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


# --- who gets a turn ------------------------------------------------------------------------------------------------


async def test_turns_go_where_the_fewest_are_in_flight(codec, serve):
    servers = [serve() for _ in range(3)]
    async with pool_of(codec, *servers) as pool, in_flight(pool, servers, talks_of(codec, 12)):
        assert [len(server.turns) for server in servers] == [4, 4, 4]


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


async def test_a_group_stays_together_unless_that_is_much_busier(codec, serve):
    servers = [serve() for _ in range(2)]
    async with pool_of(codec, *servers) as pool:
        few = [Talk(codec, session=f"a/{k}", group="a", seed=k) for k in range(6)]
        async with in_flight(pool, servers, few):
            assert sorted(len(server.turns) for server in servers) == [0, 6]
        many = [Talk(codec, session=f"b/{k}", group="b", seed=k) for k in range(40)]
        async with in_flight(pool, servers, many):
            assert min(len(server.turns) for server in servers) >= 10


async def test_a_session_stays_where_it_began_and_leaves_nothing_behind(codec, serve):
    servers = [serve() for _ in range(3)]
    heard = []
    async with pool_of(codec, *servers) as pool:
        await until_serving(pool, 3)
        await asyncio.gather(*(episode(pool, talk, 4, heard) for talk in talks_of(codec, 12)))
        where = {turn.answer: server.url for server in servers for turn in server.turns}
        for session in {session for session, *_ in heard}:
            assert len({where[number] for one, _, number, *_ in heard if one == session}) == 1
        assert len(set(where.values())) == 3
        assert pool._sessions == {} == pool._groups and {m.sessions for m in pool._members} == {0}


# --- no turn lost, none doubled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
async def test_servers_that_die_hang_and_err_at_random_lose_no_turn_and_double_none(codec, serve, seed):
    """Twenty faults among episodes: every turn is answered, once, and by an answer to its very prompt."""
    draw, flaky = random.Random(seed), random.Random(seed + 100)
    servers = [
        serve(
            fault=lambda turn: flaky.choice(["500", "reset", "abort"]) if flaky.random() < 0.03 else None,
            latency_s=lambda turn: flaky.uniform(0.0, 0.08),
        )
        for _ in range(3)
    ]
    heard, played, over = [], [], asyncio.Event()

    async def play(slot):
        while not over.is_set():
            talk = Talk(codec, session=f"{slot}/{len(played)}", group=f"{slot}", seed=len(played), images=[image])
            played.append(talk.session)
            await episode(pool, talk, 5, heard, images=True)

    image = picture(seed, 32, 32)
    async with pool_of(codec, *servers, answer_s=0.4, tries=30) as pool:
        players = asyncio.gather(*(play(slot) for slot in range(12)))
        for _ in range(20):
            server, how = draw.choice(servers), draw.choice(["die", "hang", "hang_engine"])
            await asyncio.to_thread(getattr(server, how))
            await asyncio.sleep(draw.uniform(0.02, 0.6))
            await asyncio.to_thread(server.go_on)  # what hung answers late
            if how == "die":
                await asyncio.to_thread(server.start)
        over.set()
        await players
    assert sorted((session, turn) for session, turn, *_ in heard) == sorted((s, k) for s in played for k in range(5))
    assert len({number for _, _, number, *_ in heard}) == len(heard)
    answers = {turn.answer: turn for server in servers for turn in server.turns}
    for _, _, number, segments, ids in heard:
        assert answers[number].prompt == tuple(engine_ids(segments, codec.image_token_id)) and len(ids) > 0


async def test_a_turn_is_with_one_server_at_a_time(codec, serve):
    """It is asked again when the first has failed, and by then the first's connection is closed."""
    first, second = serve(fault=lambda turn: "hang"), serve(latency_s=lambda turn: 0.2)
    async with pool_of(codec, first, second, timeout_s=0.5) as pool:
        await until_serving(pool, 2)
        await asyncio.gather(*(pool.sample(ask_of(talk)) for talk in talks_of(codec, 8)))
        assert first.turns, "the hung one was asked too"
        await until(lambda: all(turn.left for turn in first.turns))
        for turn in first.turns:
            again = [t for t in second.turns if t.prompt == turn.prompt]
            assert len(again) == 1


async def test_turns_of_a_server_that_hangs_are_asked_elsewhere_long_before_their_own_deadline(codec, serve):
    servers = [serve(latency_s=lambda turn: 0.1) for _ in range(2)]
    async with pool_of(codec, *servers, timeout_s=600.0, answer_s=0.3) as pool:
        await until_serving(pool, 2)
        await asyncio.to_thread(servers[0].hang)
        await asyncio.gather(*(pool.sample(ask_of(talk)) for talk in talks_of(codec, 8)))
        assert [control.url for control in pool.controls()] == [servers[1].url]
        await asyncio.to_thread(servers[0].go_on)
        await until(lambda: len(pool.controls()) == 2)


async def test_a_request_that_is_impossible_is_asked_once(codec, serve):
    servers = [serve(fault=lambda turn: "400") for _ in range(2)]
    async with pool_of(codec, *servers) as pool:
        with pytest.raises(ValueError, match="status 400"):
            await pool.sample(ask_of(Talk(codec)))
    assert sum(len(server.turns) for server in servers) == 1


async def test_a_turn_that_fails_wherever_it_is_asked_ends(codec, serve):
    servers = [serve(fault=lambda turn: "500") for _ in range(2)]
    async with pool_of(codec, *servers, tries=3) as pool:
        with pytest.raises(EngineLost, match=r"was asked 3 times; the last: .*status 500: fault 500"):
            await pool.sample(ask_of(Talk(codec)))
    assert sum(len(server.turns) for server in servers) == 3


async def test_leaving_a_turn_leaves_the_server_too(codec, serve):
    server = serve(fault=lambda turn: "hang")
    async with pool_of(codec, server) as pool:
        asked = asyncio.create_task(pool.sample(ask_of(Talk(codec))))
        await until(lambda: server.turns)
        asked.cancel()
        await until(lambda: server.turns[0].left)
        assert not pool._members[0].turns


# --- nobody there ---------------------------------------------------------------------------------------------------


async def test_with_nobody_there_turns_wait_and_then_fail_by_name(codec, serve):
    servers = [serve(), serve()]
    for server in servers:
        server.die()
    async with pool_of(codec, *servers, patience_s=0.4) as pool:
        with pytest.raises(EngineLost) as caught:
            await pool.sample(ask_of(Talk(codec)))
        for server in servers:
            assert f"{server.url}: {server.url} cannot be asked: ConnectError" in str(caught.value)
    async with pool_of(codec, *servers) as pool:
        asked = asyncio.create_task(pool.sample(ask_of(Talk(codec))))
        await asyncio.sleep(0.2)
        assert not asked.done()
        await asyncio.to_thread(servers[1].start)
        assert (await asked).ids


@pytest.mark.parametrize(("options", "says"), [({"api_key": "k"}, "refuses the key"), ({"exact": False}, "chat alone")])
async def test_what_no_waiting_mends_is_said_at_once(codec, serve, options, says):
    async with pool_of(codec, serve(**options), patience_s=600) as pool:
        with pytest.raises(EngineError, match=says) as caught:
            await pool.sample(ask_of(Talk(codec)))
        assert not isinstance(caught.value, EngineLost)


async def test_a_server_of_another_kind_is_told_at_once(codec):
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pool = Pool([Endpoint(f"http://127.0.0.1:{server.server_port}", codec=codec)], patience_s=600)
        with pytest.raises(EngineError, match=r"is no vLLM server: it has no /health \(status 404\)") as caught:
            await pool.sample(ask_of(Talk(codec)))
        await pool.close()
        server.shutdown()
    assert not isinstance(caught.value, EngineLost)


async def test_what_is_waited_for_is_told_once(codec, serve, caplog):
    server = serve()
    server.die()
    async with pool_of(codec, server, patience_s=0.4) as pool:
        with pytest.raises(EngineLost):
            await pool.sample(ask_of(Talk(codec)))
    (said,) = [r.message for r in caplog.records if r.name == "agentvision.engine.pool"]
    assert said.startswith(f"{server.url} gets no turns: {server.url} cannot be asked: ConnectError")


async def test_a_closed_pool_says_so_to_those_who_wait(codec, serve):
    server = serve(fault=lambda turn: "hang")
    async with pool_of(codec, server) as pool:
        asked = asyncio.create_task(pool.sample(ask_of(Talk(codec))))
        await until(lambda: server.turns)
    with pytest.raises(EngineLost, match="closed"):
        await asked


def test_a_pool_serves_one_event_loop_after_another(codec, serve):
    pool = Pool([Endpoint(serve().url, codec=codec)])
    for seed in range(2):
        asyncio.run(pool.sample(ask_of(Talk(codec), seed=seed)))
    asyncio.run(pool.close())


@pytest.mark.parametrize("urls", [[], ["http://a:1", "http://a:1/v1"]])
def test_no_server_and_one_named_twice_are_refused(codec, urls):
    with pytest.raises(EngineError):
        Pool([Endpoint(url, codec=codec) for url in urls])


# --- weights --------------------------------------------------------------------------------------------------------


async def bring(endpoint, version):
    await endpoint.pause()
    await endpoint.start_weight_update()
    await endpoint.update_weights({})
    await endpoint.finish_weight_update(version)
    await endpoint.reset_caches()
    await endpoint.resume()


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
    server = serve(latency_s=lambda turn: 0.5)
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
    server = serve(latency_s=lambda turn: 0.5)
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
