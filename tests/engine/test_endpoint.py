"""One server: what is sent, what is made of the answer, and what is said when there is none."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from agentvision.engine.endpoint import Endpoint
from agentvision.engine.pictures import Pictures
from agentvision.engine.types import BrokenNumbers, EngineError, EngineLost, VersionSpan
from agentvision.images import ImageStore
from agentvision.tokens import engine_ids, token_count

from ..policies.policy_cases import Talk, picture
from .asks import ask_of
from .vllm_server import said

# --- turns ----------------------------------------------------------------------------------------------------------


async def test_a_turn_is_the_ledger_out_and_exact_ids_and_logprobs_back(codec, serve, endpoint_of):
    server = serve()
    talk = Talk(codec, images=[picture(1), picture(2, 64, 64)], session="a row with ümläute\n/3", seed=4)
    sampled = await endpoint_of(server).sample(ask_of(talk, temperature=0.7, max_tokens=9))
    turn = server.turns[0]
    sampling = turn.body["sampling_params"]
    assert list(turn.prompt) == engine_ids(talk.segments, codec.image_token_id)
    assert [part["uuid"] for part in turn.body["content_parts"]] == [v.image for v in talk.views]
    assert list(sampled.ids) == said(turn.prompt, sampling["seed"], codec.stop_ids[0])
    assert len(sampled.logprobs) == len(sampled.ids)
    assert sampled.versions == (VersionSpan(0, 0, len(sampled.ids)),)
    assert sampled.prompt_tokens == token_count(talk.segments)
    assert (sampling["temperature"], sampling["max_tokens"], sampling["logprobs"]) == (0.7, 9, 0)
    assert sampling["stop_token_ids"] == list(codec.stop_ids) and sampling["ignore_eos"]
    assert sampling["logit_bias"] == {str(i): -100.0 for i in codec.banned_ids}


async def test_a_turn_draws_from_the_stream_that_it_is_given(codec, serve, endpoint_of):
    server = serve()
    await endpoint_of(server).sample(ask_of(Talk(codec), seed=2**63 + 5))
    assert server.turns[0].body["sampling_params"]["seed"] == 5


async def test_pixels_travel_once_and_again_when_they_were_forgotten(codec, serve, endpoint_of):
    server, talk = serve(), Talk(codec, images=[picture(1), picture(2)])
    endpoint = endpoint_of(server)

    async def sent():
        before = len(server.turns)
        await endpoint.sample(ask_of(talk))
        return [["url" in part for part in turn.body["content_parts"]] for turn in server.turns[before:]]

    assert await sent() == [[True, True]]
    assert await sent() == [[False, False]]
    server.forget_images()
    assert await sent() == [[False, False], [True, True]]
    await endpoint.reset_caches()
    assert await sent() == [[True, True]]


async def test_a_picture_of_any_size_is_sent_as_the_trainer_sees_it(codec):
    store = ImageStore()
    image = store.add(picture(3, 133, 71))
    url = await Pictures(codec.vision).url(store, image)
    sent = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert sent.size == codec.vision.fit((133, 71)) != (133, 71)
    theirs = codec.image_processor(images=[sent], return_tensors="pt")["pixel_values"]
    assert np.array_equal(theirs.numpy(), codec.pixels(store, image).values.numpy())


async def test_pictures_are_encoded_once_for_all_who_ask_and_the_oldest_go(codec, monkeypatch):
    pictures, store = Pictures(codec.vision, cache_bytes=1), ImageStore()
    keys = [store.add(picture(k)) for k in range(3)]
    made = []
    encode = pictures._encode
    monkeypatch.setattr(pictures, "_encode", lambda store, image: (made.append(image), encode(store, image))[1])
    urls = await asyncio.gather(*(pictures.url(store, keys[0]) for _ in range(5)))
    assert len(set(urls)) == 1 and made == keys[:1]
    await pictures.url(store, keys[1])
    await pictures.url(store, keys[1])
    await pictures.url(store, keys[0])
    assert made == [keys[0], keys[1], keys[0]]


async def test_another_prompt_than_the_ledgers_is_named_by_its_first_difference(codec, serve, endpoint_of):
    talk = Talk(codec)
    with pytest.raises(EngineError, match=r"different from id 2 on \(\[7, ") as caught:
        await endpoint_of(serve(fault=lambda turn: "wrong-ids")).sample(ask_of(talk))
    assert not isinstance(caught.value, EngineLost)


async def test_an_image_of_another_token_count_is_another_prompt(codec, serve, endpoint_of):
    talk = Talk(codec, images=[picture(1)])
    with pytest.raises(EngineError, match=r"--mm-processor-kwargs"):
        await endpoint_of(serve(factor=8)).sample(ask_of(talk))


async def test_a_turn_asks_for_no_more_than_there_is_room_for(codec, serve, endpoint_of):
    talk = Talk(codec, images=[picture(1)])
    prompt = token_count(talk.segments)
    servers = [serve(max_model_len=prompt + room) for room in (7, 0)]
    roomy, full = [endpoint_of(server) for server in servers]
    await roomy.probe()
    await full.probe()
    await roomy.sample(ask_of(talk, max_tokens=5))
    await roomy.sample(ask_of(talk, max_tokens=500))
    asked = [t.body["sampling_params"]["max_tokens"] for t in servers[0].turns]
    assert asked == [5, 7]
    with pytest.raises(ValueError, match=f"has room for 0 tokens: the prompt takes {prompt} of the engine's {prompt}"):
        await full.sample(ask_of(talk))
    with pytest.raises(ValueError, match="has room for 0 tokens"):
        await roomy.sample(ask_of(talk, max_tokens=0))
    assert servers[1].turns == []


async def test_closing_the_connection_gives_a_turn_up(codec, serve, endpoint_of):
    server, talk = serve(fault=lambda turn: "hang"), Talk(codec)
    asked = asyncio.create_task(endpoint_of(server).sample(ask_of(talk)))
    while not server.turns:
        await asyncio.sleep(0.01)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    while not server.turns[0].left:
        await asyncio.sleep(0.01)


def test_one_endpoint_serves_one_event_loop_after_another(codec, serve):
    server, talk = serve(), Talk(codec)
    endpoint = Endpoint(server.url, codec=codec)
    assert asyncio.run(endpoint.sample(ask_of(talk))) != asyncio.run(endpoint.sample(ask_of(talk, seed=9)))
    asyncio.run(endpoint.close())


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("500", EngineLost, "could not sample a turn: status 500: fault 500"),
        ("429", EngineLost, "status 429"),
        ("reset", EngineLost, "cannot be asked"),
        ("abort", EngineLost, "gave a turn up"),
        ("400", ValueError, "refuses turn 0 of session 's/0': status 400: fault 400"),
        ("garbage", EngineError, "unknown form"),
        ("nan", BrokenNumbers, "log-prob is -9999.0"),
    ],
)
async def test_failures_say_whether_another_may_be_asked(codec, serve, endpoint_of, fault, kind, says):
    with pytest.raises((EngineError, ValueError), match=says) as caught:
        await endpoint_of(serve(fault=lambda turn: fault)).sample(ask_of(Talk(codec)))
    assert type(caught.value) is kind


async def test_no_answer_in_time_and_nobody_there_are_lost(codec, serve, endpoint_of):
    hung = serve(fault=lambda turn: "hang")
    with pytest.raises(EngineLost, match=r"did not answer /inference/v1/generate within 0\.2 s"):
        await endpoint_of(hung, timeout_s=0.2).sample(ask_of(Talk(codec)))
    dead = serve()
    dead.die()
    with pytest.raises(EngineLost, match="ConnectError"):
        await endpoint_of(dead).sample(ask_of(Talk(codec)))


async def test_a_key_is_sent_and_never_told(codec, serve, endpoint_of):
    server = serve(api_key="s3cret")
    await endpoint_of(server, api_key="s3cret").sample(ask_of(Talk(codec)))
    wrong = endpoint_of(server, api_key="wr0ng")
    with pytest.raises(EngineError, match="refuses the key") as caught:
        await wrong.sample(ask_of(Talk(codec)))
    with pytest.raises(EngineError, match="refuses the key"):
        await wrong.probe()
    assert "wr0ng" not in f"{caught.value} {wrong!r} {wrong._routes.wire!r}"


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://host", "unix://", "http://", "http://host:port", "http://host:99999", ""]
)
def test_an_address_that_is_none_is_refused(codec, url):
    with pytest.raises(EngineError, match="is no inference server's address"):
        Endpoint(url, codec=codec)


def test_an_address_with_a_password_is_refused_without_telling_it(codec):
    with pytest.raises(EngineError, match="'host' holds a password") as caught:
        Endpoint("http://me:s3cret@host:port", codec=codec)
    assert "s3cret" not in str(caught.value)


async def test_an_error_of_this_side_is_not_taken_for_a_lost_server(codec, serve, endpoint_of, monkeypatch):
    endpoint = endpoint_of(serve())

    async def fails(*args, **kwargs):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(endpoint._routes.wire._client, "request", fails)
        with pytest.raises(RuntimeError, match="a bug"):
            await endpoint.probe()
    await endpoint.close()
    with pytest.raises(EngineLost, match="cannot be asked"):
        await endpoint.probe()


# --- what it is, and the trainer's side -----------------------------------------------------------------------------


@pytest.mark.parametrize(("exact", "control"), [(True, True), (True, False), (False, False)])
async def test_a_probe_says_what_a_server_offers(codec, serve, endpoint_of, exact, control):
    server = serve(exact=exact, control=control)
    info = await endpoint_of(server.url + "/v1").probe()
    assert info.url == server.url
    assert (info.model, info.max_model_len, info.exact, info.control) == ("policy", 4096, exact, control)


async def test_what_a_server_does_not_offer_is_said_with_the_flag_that_offers_it(codec, serve, endpoint_of):
    endpoint = endpoint_of(serve(exact=False, control=False))
    with pytest.raises(EngineError, match="--enable-scale-out"):
        await endpoint.sample(ask_of(Talk(codec)))
    with pytest.raises(EngineError, match="VLLM_SERVER_DEV_MODE=1"):
        await endpoint.pause()
