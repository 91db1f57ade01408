"""Several servers as one: who gets a turn, and that no turn is lost or doubled when servers die, hang and come back."""

import asyncio
import random
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from agentvision.engine.endpoint import Endpoint
from agentvision.engine.pool import Pool
from agentvision.engine.types import EngineError, EngineLost
from agentvision.tokens import engine_ids

from ..policies.policy_cases import Talk, picture
from .asks import ask_of
from .pool_cases import episode, in_flight, pool_of, talks_of, until, until_serving

# --- who gets a turn ------------------------------------------------------------------------------------------------


async def test_turns_go_where_the_fewest_are_in_flight(codec, serve):
    servers = [serve() for _ in range(3)]
    async with pool_of(codec, *servers) as pool, in_flight(pool, servers, talks_of(codec, 12)):
        assert [len(server.turns) for server in servers] == [4, 4, 4]


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
    async with pool_of(codec, first, second) as pool:
        pool._members[0].endpoint._timeout_s = 0.5
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
        await until(lambda: [control.url for control in pool.controls()] == [servers[1].url])
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
    async with pool_of(codec, *servers, patience_s=3.0) as pool:
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
    async with pool_of(codec, server, patience_s=3.0) as pool:
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
