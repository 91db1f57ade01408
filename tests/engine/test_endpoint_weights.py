"""One server and the trainer's side of it: new weights, pauses, what is believed of it meanwhile."""

import asyncio

import pytest

from agentvision.engine.types import EngineError, EngineLost, VersionSpan
from agentvision.tokens import token_count

from ..policies.policy_cases import Talk, picture
from .asks import ask_of
from .vllm_server import said


async def test_new_weights_come_in_steps_and_their_version_with_them(codec, serve, endpoint_of):
    server = serve()
    endpoint = endpoint_of(server)
    assert await endpoint.version() == "default"
    await endpoint.pause()
    await endpoint.start_weight_update()
    assert endpoint.updating and endpoint.weights is None
    await endpoint.update_weights({"names": ["a"]})
    await endpoint.finish_weight_update(3)
    assert endpoint.updating and endpoint.weights is None, "the trainer has not proven them"
    await endpoint.reset_caches()
    assert await endpoint.call_worker("agentvision_received") == ["{}"]
    await endpoint.resume()
    assert await endpoint.version() == "3" == endpoint.weights and not endpoint.updating
    assert [call for call, _ in server.calls] == [
        "/pause?mode=abort&clear_cache=false",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/collective_rpc",
        "/resume",
    ]
    assert (await endpoint.sample(ask_of(Talk(codec)))).versions[0].version == 3


async def test_a_turn_waits_out_a_pause_and_goes_on_from_what_it_has_said(codec, serve, endpoint_of):
    server = serve(latency_s=lambda turn: 30.0 if turn is server.turns[0] else 0.0)
    endpoint, talk = endpoint_of(server), Talk(codec, images=[picture(1)])
    asked = asyncio.create_task(endpoint.sample(ask_of(talk, max_tokens=40)))
    while not server.turns:
        await asyncio.sleep(0.01)
    await endpoint.pause()
    late = asyncio.create_task(endpoint.sample(ask_of(talk, session="late")))
    await endpoint.start_weight_update()
    await endpoint.finish_weight_update(1)
    await endpoint.reset_caches()
    await asyncio.sleep(0.4)
    assert len(server.turns) == 1 and not asked.done() and not late.done()
    await endpoint.resume()
    sampled = await asked
    await late
    first = server.turns[0]
    rest = next(turn for turn in server.turns if len(turn.prompt) > len(first.prompt))
    begun = rest.prompt[len(first.prompt) :]
    seeds = [turn.body["sampling_params"]["seed"] for turn in (first, rest)]
    whole = said(first.prompt, seeds[0], codec.stop_ids[0])
    assert list(begun) == whole[: len(whole) // 2]
    assert list(sampled.ids) == [*begun, *said(rest.prompt, seeds[1], codec.stop_ids[0])]
    assert rest.body["sampling_params"]["max_tokens"] == 40 - len(begun) and seeds[0] != seeds[1]
    spans = [(s.version, s.start, s.end) for s in sampled.versions]
    assert spans == [(0, 0, len(begun)), (1, len(begun), len(sampled.ids))]
    assert sampled.prompt_tokens == token_count(talk.segments)


async def test_a_pause_without_new_weights_leaves_one_span(codec, serve, endpoint_of):
    server = serve(latency_s=lambda turn: 30.0 if turn is server.turns[0] else 0.0)
    endpoint = endpoint_of(server)
    asked = asyncio.create_task(endpoint.sample(ask_of(Talk(codec), max_tokens=40)))
    while not server.turns:
        await asyncio.sleep(0.01)
    await endpoint.pause()
    await endpoint.resume()
    sampled = await asked
    assert len(server.turns) == 2 and sampled.versions == (VersionSpan(0, 0, len(sampled.ids)),)


@pytest.mark.parametrize("new_weights", [True, False])
async def test_a_pause_of_another_process_is_waited_out_too(codec, serve, endpoint_of, new_weights):
    """Of a distributed trainer's ranks the first alone pauses and brings; turns of the others go on under what it brought."""
    server = serve(latency_s=lambda turn: 30.0 if turn is server.turns[0] else 0.0)
    mine, theirs, talk = endpoint_of(server), endpoint_of(server), Talk(codec)
    await mine.probe()
    asked = asyncio.create_task(mine.sample(ask_of(talk, max_tokens=40)))
    while not server.turns:
        await asyncio.sleep(0.01)
    await theirs.pause()
    if new_weights:
        await theirs.start_weight_update()
        await theirs.finish_weight_update(1)
    while server.turns[0].answer is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    assert len(server.turns) == 1 and not asked.done()
    await theirs.resume()
    sampled = await asked
    first, rest = server.turns
    begun = rest.prompt[len(first.prompt) :]
    spans = [(s.version, s.start, s.end) for s in sampled.versions]
    assert sampled.ids[: len(begun)] == begun
    assert spans[-1] == (int(new_weights), len(begun) if new_weights else 0, len(sampled.ids))


async def test_a_pause_of_another_process_that_is_over_is_seen_by_the_new_weights(codec, serve, endpoint_of):
    server = serve(fault=lambda turn: "abort" if len(server.turns) == 1 else None)
    endpoint = endpoint_of(server)
    await endpoint.probe()
    asking = endpoint._sample_part

    async def ask_and_be_overtaken(*args):
        part = await asking(*args)
        server.version = "5"
        return part

    endpoint._sample_part = ask_and_be_overtaken
    sampled = await endpoint.sample(ask_of(Talk(codec), max_tokens=40))
    assert sampled.versions[-1].version == 5 and len(server.turns) == 2


async def test_a_pause_of_another_process_that_does_not_end_is_a_failure(codec, serve, endpoint_of):
    server = serve(fault=lambda turn: "abort")
    endpoint = endpoint_of(server)
    await endpoint.probe()
    asking = endpoint._sample_part

    async def ask_and_be_paused(*args):
        part = await asking(*args)
        server.paused, endpoint._timeout_s = True, 0.5
        return part

    endpoint._sample_part = ask_and_be_paused
    with pytest.raises(EngineLost, match=r"paused by another process and not resumed within 0\.5 s"):
        await endpoint.sample(ask_of(Talk(codec)))


@pytest.mark.parametrize("fault", ["nan", "abort", "500", "400", "hang"])
async def test_a_turn_alone_that_fails_leaves_the_server_paused(codec, serve, endpoint_of, fault):
    """It shows nothing of its weights, and other processes would ask a server that is not paused."""
    server = serve(fault=lambda turn: fault)
    endpoint = endpoint_of(server, control_timeout_s=30.0)
    if fault == "hang":  # the other calls keep their time
        asking = endpoint._sample_part
        endpoint._sample_part = lambda *args, timeout_s: asking(*args, timeout_s=timeout_s / 30)
    await endpoint.pause()
    with pytest.raises((EngineError, ValueError)):
        await endpoint.sample_alone(ask_of(Talk(codec)))
    assert server.paused and endpoint.held


async def test_a_turn_alone_without_room_does_not_resume_the_server(codec, serve, endpoint_of):
    server = serve(max_model_len=3)
    endpoint = endpoint_of(server)
    await endpoint.probe()
    await endpoint.pause()
    with pytest.raises(ValueError, match="has room for"):
        await endpoint.sample_alone(ask_of(Talk(codec)))
    assert server.paused


async def test_workers_that_do_not_answer_prove_nothing(codec, serve, endpoint_of):
    with pytest.raises(EngineError, match=r"'agentvision_received' \(\[\]\).*--worker-extension-cls"):
        await endpoint_of(serve(workers=False)).call_worker("agentvision_received")


async def test_a_pause_that_comes_while_another_is_undone_stands(codec, serve, endpoint_of):
    server = serve()
    server.paused = True
    endpoint = endpoint_of(server)
    asking, reached, go_on = endpoint._control, asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def slow(method, path, body=None):
        reply = await asking(method, path, body)
        if path == "/is_paused":
            loop.call_soon_threadsafe(reached.set)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
        return reply

    endpoint._control = slow
    undoing = asyncio.create_task(endpoint.resume_unless_held())
    await reached.wait()
    pausing = asyncio.create_task(endpoint.pause())
    while not endpoint.held:
        await asyncio.sleep(0.01)
    go_on.set()
    await asyncio.gather(undoing, pausing)
    assert server.paused and endpoint.held
    assert "/resume" not in [call for call, _ in server.calls]


async def test_first_weights_after_others_were_brought_are_a_server_that_was_started_again(codec, serve, endpoint_of):
    """Version 0 too is brought, and is called "0" then: the server's own first weights may be anybody's."""
    server = serve()
    endpoint = endpoint_of(server)
    assert (await endpoint.sample(ask_of(Talk(codec)))).versions[0].version == 0
    await endpoint.start_weight_update()
    await endpoint.finish_weight_update(0)
    await endpoint.resume()
    await endpoint.sample(ask_of(Talk(codec)))
    server.version = "default"
    with pytest.raises(EngineLost, match="lost its weights: it was started again"):
        await endpoint.sample(ask_of(Talk(codec)))


async def test_a_torn_update_leaves_weights_of_no_version_whatever_the_server_says(codec, serve, endpoint_of):
    endpoint = endpoint_of(serve())
    await endpoint.start_weight_update()
    with pytest.raises(EngineError, match="/update_weights failed: status 500: the tensor does not fit"):
        await endpoint.update_weights({"fail": True})
    await endpoint.probe()
    assert endpoint.weights is None and not endpoint.updating
    await endpoint.start_weight_update()
    await endpoint.finish_weight_update(2)
    await endpoint.resume()
    assert endpoint.weights == "2"


async def test_a_cache_that_cannot_be_forgotten_is_an_error(codec, serve, endpoint_of):
    with pytest.raises(EngineError, match="keeps its prefix cache"):
        await endpoint_of(serve(prefix_busy=True)).reset_caches()


async def test_a_look_has_one_deadline_for_all_that_it_asks(codec, serve, endpoint_of):
    server = serve()
    endpoint = endpoint_of(server)
    await endpoint.probe()
    calling, left = endpoint._routes.wire.call, {}

    async def slow(method, path, **options):
        left[path] = options["timeout_s"]
        await asyncio.sleep(0.3)
        return await calling(method, path, **options)

    endpoint._routes.wire.call = slow
    await endpoint.check(timeout_s=30.0)
    assert list(left) == ["/health", "/weight_info", "/is_paused"]
    assert left["/health"] <= 30 and left["/weight_info"] <= 29.72 and left["/is_paused"] <= 29.42


async def test_well_is_the_engine_too_where_it_can_be_asked(codec, serve, endpoint_of):
    server = serve()
    endpoint = endpoint_of(server)
    server.hang_engine()
    await endpoint.check(timeout_s=10)  # not probed: the front is all that is known of
    server.go_on()
    await endpoint.probe()
    await endpoint.check(timeout_s=10)
    server.hang_engine()
    with pytest.raises(EngineLost, match="/weight_info"):
        await endpoint.check(timeout_s=2.0)
